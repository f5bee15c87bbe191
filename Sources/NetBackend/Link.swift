// A network interface by its name, seen through one socket: it decides the network namespace, and is held from before the
// sandbox on. Any thread.

import CLinux
import Glibc
import HostIO

final class Link: Sendable {
  private let name: String
  private let socket: OwnedFD

  init(name: String) throws(TapError) {
    self.name = name
    socket = OwnedFD(adopting: clx_link_socket())
    guard socket.raw >= 0 else { throw .system(call: "socket", code: errno) }
  }

  /// Its number; nil where there is no such interface.
  var index: Int32? {
    // SAFETY: a NUL-terminated copy of the name, and a local value.
    var index: Int32 = 0
    return unsafe clx_link_index(socket.raw, name, &index) == 0 ? index : nil
  }

  /// Up, and with a carrier; nil where there is no such interface here.
  var isUp: Bool? {
    // SAFETY: a NUL-terminated copy of the name, and a local value.
    var flags: UInt32 = 0
    guard unsafe clx_link_flags(socket.raw, name, &flags) == 0 else { return nil }
    let both = UInt32(CLX_IFF_UP | CLX_IFF_RUNNING)
    return flags & both == both
  }

  var mtu: Int? {
    // SAFETY: a NUL-terminated copy of the name, and a local value.
    var mtu: Int32 = 0
    return unsafe clx_link_mtu(socket.raw, name, &mtu) == 0 ? Int(mtu) : nil
  }

  var speed: (megabits: UInt32, duplex: UInt8)? {
    // SAFETY: a NUL-terminated copy of the name, and local values.
    var speed: UInt32 = 0
    var duplex: UInt8 = 0
    return unsafe clx_link_speed(socket.raw, name, &speed, &duplex) == 0 ? (speed, duplex) : nil
  }

  /// Whether it is a tap; nil where that cannot be told.
  var isTap: Bool? {
    // SAFETY: a NUL-terminated copy of the name, and two arrays of the 32 bytes that are asked for.
    var driver = [CChar](repeating: 0, count: 32)
    var bus = [CChar](repeating: 0, count: 32)
    let code = unsafe driver.withUnsafeMutableBufferPointer { driver in
      unsafe bus.withUnsafeMutableBufferPointer { bus in
        unsafe clx_link_driver(socket.raw, name, driver.baseAddress, bus.baseAddress)
      }
    }
    guard code == 0 else { return errno == EOPNOTSUPP ? false : nil }
    return Self.text(driver) == "tun" && Self.text(bus) == "tap"
  }

  // SAFETY: a NUL-terminated copy of the name.
  func setUp() -> Bool { unsafe clx_link_set_up(socket.raw, name, 1) == 0 }

  /// The text beside its name, which `ip link` shows: marks what is ours. On the thread that opened the link.
  var alias: String? {
    guard let index else { return nil }
    var text = [CChar](repeating: 0, count: 257)
    // SAFETY: fills at most 257 bytes of the array, the last one with NUL.
    let code = unsafe text.withUnsafeMutableBufferPointer {
      unsafe clx_link_alias(index, $0.baseAddress, UInt32($0.count))
    }
    return code == 0 ? Self.text(text) : nil
  }

  // SAFETY: a NUL-terminated copy of the text.
  func setAlias(_ text: String) -> Bool { index.map { unsafe clx_link_set_alias($0, text) == 0 } ?? false }

  /// As a bridge: takes another interface in.
  // SAFETY: a NUL-terminated copy of the name.
  func addToBridge(_ index: Int32) -> Bool { unsafe clx_bridge_add(socket.raw, name, index) == 0 }

  /// As a bridge: whether an interface is one of its ports.
  // SAFETY: a NUL-terminated copy of the name.
  func hasPort(_ index: Int32) -> Bool { unsafe clx_bridge_has(socket.raw, name, index) == 1 }

  private static func text(_ characters: [CChar]) -> String {
    String(decoding: characters.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }
}

/// Becomes readable when any interface changes.
public struct LinkEvents: ~Copyable, Sendable {
  private let socket: OwnedFD

  public init() throws(HostError) {
    socket = OwnedFD(adopting: clx_link_watch())
    guard socket.raw >= 0 else { throw .system(call: "rtnetlink", code: errno) }
  }

  /// Gives the socket up, open.
  public consuming func release() -> OwnedFD { socket }
}
