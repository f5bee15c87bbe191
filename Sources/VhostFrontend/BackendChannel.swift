// The front-end's end of the socket a back-end asks through (SET_BACKEND_REQ_FD). One thread, which may be
// another than the connection's.

import CLinux
import Glibc

/// What a back-end asked.
public struct BackendMessage: Sendable {
  public let request: BackendRequest
  public let flags: UInt32
  public let payload: [UInt8]
  public let descriptors: [FrontendDescriptor]
  public var needsReply: Bool { flags & WireHeader.needReply != 0 }
}

// SAFETY: one thread at a time; whoever hands it over has ordered the two.
/// May be handed from thread to thread, not shared.
public final class BackendChannel: @unchecked Sendable {
  private let connection: FrontendConnection
  public var raw: Int32 { connection.socket.raw }

  public init(adopting socket: FrontendDescriptor, timeout: Duration = .seconds(10)) {
    connection = FrontendConnection(adopting: socket, timeout: timeout)
  }

  /// The next message. Its header must be of version 1 and no reply.
  public func receive(timeout: Duration? = nil) throws(FrontendError) -> BackendMessage {
    let message = try connection.receiveAny(timeout: timeout, what: "message of the back-end")
    let header = message.header
    guard header.flags & ~WireHeader.needReply == WireHeader.version else {
      throw .badReply(
        request: header.request, field: "flags", value: UInt64(header.flags),
        expected: UInt64(WireHeader.version))
    }
    return BackendMessage(
      request: BackendRequest(rawValue: header.request), flags: header.flags, payload: message.payload,
      descriptors: message.descriptors)
  }

  /// Answers a message that needs it; 0 is good.
  public func reply(to message: BackendMessage, value: UInt64 = 0) throws(FrontendError) {
    try connection.sendRaw(
      request: message.request.rawValue, flags: WireHeader.replyFlags,
      payload: FrontendConnection.number(value))
  }

  /// Sends these bytes as they are, for tests of a back-end's nerves.
  public func sendRaw(_ bytes: [UInt8]) throws(FrontendError) { try connection.sendRaw(bytes) }

  /// Ends the channel for both directions.
  public func disconnect() { connection.disconnect() }

  /// Waits until the back-end has closed its end.
  public func expectClosed(timeout: Duration? = nil) throws(FrontendError) {
    try connection.expectClosed(timeout: timeout)
  }
}
