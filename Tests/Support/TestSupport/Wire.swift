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
  /// Another tap, bridged with the first one; nil where none was asked for.
  public let peer: Tap?
  private let socket: OwnedFD

  // Numbers that Swift's Glibc hides (linux/if_packet.h).
  private static let level: Int32 = 263
  private static let auxiliaryData: Int32 = 8
  private static let headers: Int32 = 15
  /// Of the header that comes before each frame at the packet socket: virtio-net's.
  public static let headerBytes = 10

  private init(tap: Tap, peer: Tap?, socket: consuming OwnedFD) {
    self.tap = tap
    self.peer = peer
    self.socket = socket
  }

  deinit {
    tap.retire()
    peer?.retire()
  }

  /// Whether this process may have one. As root it may.
  public static let isPossible = (try? Wire.make()) != nil
  /// Whether the kernel has sub-interfaces for tags.
  public static let hasNetworks = (try? Wire.make(network: 2)) != nil

  /// Everything is made on a thread that is in the namespace; descriptors stay in it. `peered`: there is a second tap,
  /// bridged with the first. `network`: the host's side is at the first one's sub-interface for that tag.
  public static func make(queues: Int = 1, peered: Bool = false, network: Int? = nil) throws -> Wire {
    let result = Reply<Result<Wire, any Error>>()
    let thread = try PinnedThread(name: "namespace", cpus: []) {
      result.fulfil(
        Result {
          guard clx_unshare_network() == 0 else { throw HostError.system(call: "unshare", code: errno) }
          // Or the kernel would have something to say on every new interface.
          let quiet = "/proc/sys/net/ipv6/conf/default/disable_ipv6"
          try? "1".write(toFile: quiet, atomically: false, encoding: .utf8)
          let tap = try Tap.open(name: "wire0", queues: queues, create: true)
          let peer = peered ? try Tap.open(name: "peer0", queues: 1, create: true) : nil
          if peered {
            try run("ip link add br0 type bridge; ip link set br0 up")
            for name in ["wire0", "peer0"] { try run("ip link set \(name) master br0") }
          }
          let side = network.map { "wire0.\($0)" } ?? "wire0"
          if let network {
            try run("ip link add link wire0 name \(side) type vlan id \(network); ip link set \(side) up")
          }
          return Wire(tap: tap, peer: peer, socket: try hostSide(of: side))
        })
    }
    defer { thread.join() }
    return try result.wait().get()
  }

  /// Runs a shell script in the calling thread's namespace.
  private static func run(_ script: String) throws {
    var child: pid_t = 0
    let line: [String] = ["sh", "-ec", "PATH=$PATH:/usr/sbin:/sbin; exec 2>/dev/null; \(script)"]
    let words: [UnsafeMutablePointer<CChar>?] = line.map { strdup($0) } + [nil]
    defer { words.forEach { free($0) } }
    guard posix_spawnp(&child, "sh", nil, nil, words, environ) == 0 else {
      throw HostError.system(call: "sh", code: errno)
    }
    var status: Int32 = 0
    guard waitpid(child, &status, 0) == child, status == 0 else {
      throw HostError.system(call: script, code: status)
    }
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

  /// The next frame of these tests that comes out of the peer tap; nil after `seconds`. What was left to do in it is done: the
  /// peer takes no other.
  public func takeFromPeer(seconds: Int = 20) -> [UInt8]? {
    guard let raw = peer?.descriptors.first else { return nil }
    let deadline = ContinuousClock.now + .seconds(seconds)
    var buffer = [UInt8](repeating: 0, count: 70_000)
    while ContinuousClock.now < deadline {
      guard !Poll.one(raw, .readable, milliseconds: 100).isEmpty else { continue }
      let count = read(raw, &buffer, buffer.count)
      guard count >= Self.headerBytes + 14 else { continue }
      let source = Array(buffer[16..<22])
      if source == [2, 0, 0, 0, 0, 9] || source.prefix(2) == [0x52, 2] {
        return Array(buffer[Self.headerBytes..<count])
      }
    }
    return nil
  }

  /// Sends a frame into the peer: over the bridge, the kernel keeps its tag beside it.
  public func giveToPeer(_ frame: [UInt8], header: [UInt8] = [UInt8](repeating: 0, count: headerBytes)) {
    let bytes = header + frame
    let count = write(peer?.descriptors.first ?? -1, bytes, bytes.count)
    precondition(count == bytes.count, "the peer took \(count) of \(bytes.count) bytes: \(errno)")
  }
}
