// What no honest front-end does: for tests of a back-end's nerves. Same thread as the connection's other
// calls.

import CLinux
import Glibc

extension FrontendConnection {
  /// Sends these bytes as they are, any number of messages or a part of one; up to 253 descriptors go with
  /// the first byte.
  public func sendRaw(_ bytes: [UInt8], descriptors: [Int32] = []) throws(FrontendError) {
    try StreamSocket.send(
      bytes, descriptors: descriptors, on: socket.raw, deadline: Deadline(timeout), what: "raw bytes")
  }

  /// A message with any id, flags and announced size over any payload.
  public func sendRaw(
    request: UInt32, flags: UInt32 = WireHeader.version, size: UInt32? = nil, payload: [UInt8] = [],
    descriptors: [Int32] = []
  ) throws(FrontendError) {
    let announced = size ?? UInt32(truncatingIfNeeded: payload.count)
    let header = WireHeader(request: request, flags: flags, size: announced)
    try sendRaw(header.bytes + payload, descriptors: descriptors)
  }

  /// One byte a send(2); the descriptors go with the first.
  public func sendByteByByte(_ bytes: [UInt8], descriptors: [Int32] = []) throws(FrontendError) {
    for (index, byte) in bytes.enumerated() {
      try sendRaw([byte], descriptors: index == 0 ? descriptors : [])
    }
  }

  /// The bytes of a message as `send` would send it, to be cut or joined.
  public static func encode(
    _ request: FrontendRequest, payload: [UInt8] = [], needReply: Bool = false
  ) -> [UInt8] {
    let flags = WireHeader.version | (needReply ? WireHeader.needReply : 0)
    let size = UInt32(truncatingIfNeeded: payload.count)
    return WireHeader(request: request.rawValue, flags: flags, size: size).bytes + payload
  }

  /// Says that nothing more will be sent, and stays open for answers.
  public func endSending() { _ = shutdown(socket.raw, Int32(SHUT_WR)) }

  /// Bytes of answers that wait to be received now.
  public var waitingBytes: Int {
    var count: Int32 = 0
    // SAFETY: FIONREAD stores an int.
    let failed = unsafe clx_ioctl_pointer(socket.raw, UInt(FIONREAD), &count)
    return failed == 0 ? Int(count) : 0
  }
}
