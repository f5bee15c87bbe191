// A network of a test's own: a namespace with a tap in it, and somebody on the host's side of the tap. Any thread.

import CLinux
import Foundation
import Glibc
import HostIO
import NetBackend

/// A tap, and a packet socket on its interface. Frames are shown as they are on a wire, tags included.
public final class Wire: Sendable, CustomReflectable {
  /// A failed expectation looks into what it names, and cannot look into this.
  public var customMirror: Mirror { Mirror(self, children: []) }
  public let tap: Tap
  private let socket: OwnedFD

  // Numbers that Swift's Glibc hides (linux/if_packet.h).
  private static let level: Int32 = 263
  private static let auxiliaryData: Int32 = 8
  private static let headers: Int32 = 15
  /// Of the header that comes before each frame at the packet socket: virtio-net's.
  public static let headerBytes = 10

  private init(tap: Tap, socket: consuming OwnedFD) {
    self.tap = tap
    self.socket = socket
  }

  deinit { tap.retire() }

  /// Whether this process may have one. As root it may.
  public static let isPossible = (try? Wire.make()) != nil

  /// Everything is made on a thread that is in the namespace; descriptors stay in it.
  public static func make(queues: Int = 1) throws -> Wire {
    let result = Reply<Result<Wire, any Error>>()
    let thread = try PinnedThread(name: "namespace", cpus: []) {
      result.fulfil(
        Result {
          guard clx_unshare_network() == 0 else { throw HostError.system(call: "unshare", code: errno) }
          // Or the kernel would have something to say on every new interface.
          let quiet = "/proc/sys/net/ipv6/conf/default/disable_ipv6"
          try? "1".write(toFile: quiet, atomically: false, encoding: .utf8)
          let tap = try Tap.open(name: "wire0", queues: queues, create: true)
          return Wire(tap: tap, socket: try hostSide(of: "wire0"))
        })
    }
    defer { thread.join() }
    return try result.wait().get()
  }

  /// A packet socket on an interface.
  private static func hostSide(of name: String) throws -> OwnedFD {
    let everything = UInt16(3).bigEndian
    let socket = OwnedFD(adopting: Glibc.socket(AF_PACKET, Int32(SOCK_RAW.rawValue), Int32(everything)))
    guard socket.raw >= 0 else { throw HostError.system(call: "packet socket", code: errno) }
    var on: Int32 = 1
    for option in [auxiliaryData, headers] {
      guard setsockopt(socket.raw, level, option, &on, 4) == 0 else {
        throw HostError.system(call: "packet socket option \(option)", code: errno)
      }
    }
    var index: Int32 = 0
    guard clx_link_index(socket.raw, name, &index) == 0 else {
      throw HostError.system(call: "index", code: errno)
    }
    // struct sockaddr_ll
    var address = [UInt8](repeating: 0, count: 20)
    address.withUnsafeMutableBytes { bytes in
      bytes.storeBytes(of: UInt16(AF_PACKET), as: UInt16.self)
      bytes.storeBytes(of: everything, toByteOffset: 2, as: UInt16.self)
      bytes.storeBytes(of: index, toByteOffset: 4, as: Int32.self)
    }
    let code = address.withUnsafeBytes {
      bind(socket.raw, $0.baseAddress!.assumingMemoryBound(to: sockaddr.self), 20)
    }
    guard code == 0 else { throw HostError.system(call: "bind", code: errno) }
    return socket
  }

  /// The next frame of these tests that came out of the tap; nil after `seconds`.
  public func take(seconds: Double = 20) -> [UInt8]? { next(seconds: seconds)?.frame }

  /// The same, with the header that the kernel has for it.
  public func next(seconds: Double = 20) -> (header: [UInt8], frame: [UInt8])? {
    let deadline = ContinuousClock.now + .seconds(seconds)
    repeat {
      guard !Poll.one(socket.raw, .readable, milliseconds: 20).isEmpty else { continue }
      guard let (header, frame) = receive() else { continue }
      let type = UInt16(frame[12]) << 8 | UInt16(frame[13])
      // Numbered content, IPv4 or a tag, by these tests; an announcement.
      if [0x88b5, 0x0800, 0x8100, 0x8035].contains(type) { return (header, frame) }
    } while ContinuousClock.now < deadline
    return nil
  }

  /// One frame, with the tag that the kernel has taken out put in again.
  private func receive() -> (header: [UInt8], frame: [UInt8])? {
    var bytes = [UInt8](repeating: 0, count: 70_000)
    var control = [UInt8](repeating: 0, count: 256)
    var (count, controlCount) = (0, 0)
    bytes.withUnsafeMutableBytes { data in
      control.withUnsafeMutableBytes { extra in
        var vector = iovec(iov_base: data.baseAddress, iov_len: data.count)
        withUnsafeMutablePointer(to: &vector) { vector in
          var message = msghdr()
          message.msg_iov = vector
          message.msg_iovlen = 1
          message.msg_control = extra.baseAddress
          message.msg_controllen = extra.count
          count = recvmsg(socket.raw, &message, Int32(MSG_DONTWAIT))
          controlCount = message.msg_controllen
        }
      }
    }
    guard count >= Self.headerBytes + 14 else { return nil }
    var frame = Array(bytes[Self.headerBytes..<count])
    // One control message: a length, level and type of 16 bytes, then struct tpacket_auxdata.
    if controlCount >= 36 {
      let word = { (at: Int) in UInt16(control[at]) | UInt16(control[at + 1]) << 8 }
      if word(16) & 0x10 != 0 {
        let tag = word(32)
        frame.insert(contentsOf: [0x81, 0, UInt8(tag >> 8), UInt8(truncatingIfNeeded: tag)], at: 12)
      }
    }
    return (Array(bytes[..<Self.headerBytes]), frame)
  }

  public func set(up: Bool) throws {
    guard clx_link_set_up(socket.raw, tap.name, up ? 1 : 0) == 0 else {
      throw HostError.system(call: "set up", code: errno)
    }
  }

  /// Sends a frame to the guest, with what is left undone in it.
  public func give(_ frame: [UInt8], header: [UInt8] = [UInt8](repeating: 0, count: headerBytes)) {
    let bytes = header + frame
    let count = bytes.withUnsafeBytes { Glibc.send(socket.raw, $0.baseAddress, $0.count, 0) }
    precondition(count == bytes.count, "a packet socket took \(count) of \(bytes.count) bytes: \(errno)")
  }
}
