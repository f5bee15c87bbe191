// The other end of a socket pair, which knows nothing of the library's codec: bytes in, bytes out.

import Glibc
import VhostFrontend

struct RawPeer {
  let socket: FrontendDescriptor

  /// Exactly `count` bytes, or what came until the end of the stream.
  func read(_ count: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var done = 0
    while done < count {
      var entry = pollfd(fd: socket.raw, events: Int16(POLLIN), revents: 0)
      guard poll(&entry, 1, 10_000) == 1 else { break }
      let got = bytes.withUnsafeMutableBytes {
        Glibc.read(socket.raw, $0.baseAddress?.advanced(by: done), count - done)
      }
      guard got > 0 else { break }
      done += got
    }
    return Array(bytes[0..<done])
  }

  func write(_ bytes: [UInt8]) {
    let sent = bytes.withUnsafeBytes { Glibc.write(socket.raw, $0.baseAddress, bytes.count) }
    precondition(sent == bytes.count)
  }

  /// Little-endian numbers of 4 bytes, one after the other.
  static func words(_ words: UInt32...) -> [UInt8] {
    words.flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> (8 * UInt32($0))) } }
  }

  static func replyToNumber(_ request: UInt32, _ value: UInt32, flags: UInt32 = 5) -> [UInt8] {
    words(request, flags, 8, value, 0)
  }

  static func makePair() throws -> (front: FrontendConnection, peer: RawPeer) {
    let (front, back) = try FrontendConnection.pair(timeout: .seconds(10))
    return (front, RawPeer(socket: back))
  }
}
