// The front-end's end of a vhost-user socket: sends requests, receives strict answers, each wait with a
// deadline. The typed calls are in FrontendConnection+Calls and +Rings, the faults in +Faults. One thread at
// a time.

import CLinux
import Glibc
import Synchronization

/// An answer, as it came: its header was checked, its payload is the caller's to take apart.
public struct FrontendReply: Sendable {
  public let header: WireHeader
  public let payload: [UInt8]
  public let descriptors: [FrontendDescriptor]
}

/// What a request without an answer of its own came to.
public enum Ack: Equatable, Sendable {
  /// REPLY_ACK is not negotiated, or this request did not ask.
  case notAsked
  case ok
  case nack(UInt64)

  /// Throws where the back-end refused.
  public func accepted(_ request: FrontendRequest) throws(FrontendError) {
    if case .nack(let value) = self { throw .refused(request: request.rawValue, value: value) }
  }

  public var isNack: Bool { if case .nack = self { true } else { false } }
}

/// Which requests ask for an acknowledgement once REPLY_ACK is negotiated. Front-ends differ in it.
public enum AckPolicy: Sendable {
  case always
  case never
  case only(Set<FrontendRequest>)

  func asks(_ request: FrontendRequest) -> Bool {
    switch self {
    case .always: true
    case .never: false
    case .only(let requests): requests.contains(request)
    }
  }
}

// SAFETY: one thread at a time; whoever hands it over has ordered the two.
/// May be handed from thread to thread, not shared.
public final class FrontendConnection: @unchecked Sendable {
  public let socket: FrontendDescriptor
  /// How long each call waits at most.
  public var timeout: Duration
  public var ackPolicy: AckPolicy = .always
  /// What `setProtocolFeatures` last set: 0 before.
  public internal(set) var protocolFeatures: UInt64 = 0
  /// Held from a request to its answer: an IOMMU's thread sends updates between those of the driver.
  let exchange = Mutex<Void>(())

  /// Takes over a connected socket.
  public init(adopting socket: FrontendDescriptor, timeout: Duration = .seconds(10)) {
    self.socket = socket
    self.timeout = timeout
  }

  /// Connects to the back-end that listens at `path`. Where `waiting` is longer than nothing, a socket that
  /// is not there yet, or that nobody listens on yet, is tried again until then.
  public static func connect(
    to path: String, waiting: Duration = .zero, timeout: Duration = .seconds(10)
  ) throws(FrontendError) -> FrontendConnection {
    let deadline = Deadline(waiting)
    while true {
      let socket = try StreamSocket.make()
      _ = clx_fcntl_int(socket.raw, F_SETFL, Int(O_NONBLOCK))
      // SAFETY: address and length are those of one sockaddr_un.
      let failed = unsafe try StreamSocket.withAddress(path) { unsafe Glibc.connect(socket.raw, $0, $1) }
      if failed == 0 { return FrontendConnection(adopting: socket, timeout: timeout) }
      let code = errno
      guard [ENOENT, ECONNREFUSED, EAGAIN, EINTR].contains(code), !deadline.hasPassed else {
        throw .system(call: "connect", code: code)
      }
      // There is nothing to wait on before the socket exists: look again in a few milliseconds.
      _ = usleep(5_000)
    }
  }

  /// A connection and the descriptor a back-end in the same process may be given.
  public static func pair(
    timeout: Duration = .seconds(10)
  ) throws(FrontendError) -> (front: FrontendConnection, back: FrontendDescriptor) {
    let (front, back) = try StreamSocket.pair()
    return (FrontendConnection(adopting: front, timeout: timeout), back)
  }

  public var acknowledges: Bool { protocolFeatures & ProtocolBits.replyAck != 0 }

  // MARK: One message

  /// Sends one request, its descriptors with the first byte. Does not wait for an answer.
  public func send(
    _ request: FrontendRequest, payload: [UInt8] = [], descriptors: [Int32] = [], needReply: Bool = false
  ) throws(FrontendError) {
    let flags = WireHeader.version | (needReply ? WireHeader.needReply : 0)
    let header = WireHeader(
      request: request.rawValue, flags: flags, size: UInt32(truncatingIfNeeded: payload.count))
    try StreamSocket.send(
      header.bytes + payload, descriptors: descriptors, on: socket.raw, deadline: Deadline(timeout),
      what: "\(request)")
  }

  /// Receives the next message, whatever it is; nothing but its length is checked (at most 64 KiB).
  public func receiveAny(timeout: Duration? = nil, what: String = "reply") throws(FrontendError)
    -> FrontendReply
  {
    let deadline = Deadline(timeout ?? self.timeout)
    var descriptors: [FrontendDescriptor] = []
    let header = WireHeader(
      try StreamSocket.receive(
        WireHeader.length, descriptors: &descriptors, on: socket.raw, deadline: deadline, what: what))
    guard header.size <= 65536 else {
      throw .badReply(request: header.request, field: "size", value: UInt64(header.size), expected: 65536)
    }
    let payload = try StreamSocket.receive(
      Int(header.size), descriptors: &descriptors, on: socket.raw, deadline: deadline, what: what)
    return FrontendReply(header: header, payload: payload, descriptors: descriptors)
  }

  /// Receives the answer to `request`: flags exactly version 1 and reply, the same id, and the size if one is
  /// given.
  public func receiveReply(
    to request: FrontendRequest, size: Int? = nil, timeout: Duration? = nil
  ) throws(FrontendError) -> FrontendReply {
    let reply = try receiveAny(timeout: timeout, what: "reply to \(request)")
    let id = request.rawValue
    guard reply.header.request == id else {
      throw .badReply(
        request: id, field: "request", value: UInt64(reply.header.request), expected: UInt64(id))
    }
    guard reply.header.flags == WireHeader.replyFlags else {
      throw .badReply(
        request: id, field: "flags", value: UInt64(reply.header.flags),
        expected: UInt64(WireHeader.replyFlags))
    }
    if let size, reply.payload.count != size {
      throw .badReply(request: id, field: "size", value: UInt64(reply.payload.count), expected: UInt64(size))
    }
    return reply
  }

  /// Waits until the back-end has closed its end. Anything else that arrives is an error.
  public func expectClosed(timeout: Duration? = nil) throws(FrontendError) {
    var descriptors: [FrontendDescriptor] = []
    do throws(FrontendError) {
      let byte = try StreamSocket.receive(
        1, descriptors: &descriptors, on: socket.raw, deadline: Deadline(timeout ?? self.timeout),
        what: "end of the connection")
      throw FrontendError.badReply(request: 0, field: "byte", value: UInt64(byte[0]), expected: 0)
    } catch {
      guard case .closed = error else { throw error }
    }
  }

  /// Ends the connection for both directions; the descriptor itself closes with the object.
  public func disconnect() { _ = shutdown(socket.raw, Int32(SHUT_RDWR)) }

  // MARK: Request and answer

  /// Sends a request that has an answer of its own, and receives it.
  public func get(
    _ request: FrontendRequest, payload: [UInt8] = [], descriptors: [Int32] = [], replySize: Int? = nil,
    replyDescriptors: ClosedRange<Int> = 0...0
  ) throws(FrontendError) -> FrontendReply {
    let reply = try exchange.withLock { _ throws(FrontendError) in
      try send(request, payload: payload, descriptors: descriptors)
      return try receiveReply(to: request, size: replySize)
    }
    guard replyDescriptors.contains(reply.descriptors.count) else {
      throw .wrongDescriptorCount(
        request: request.rawValue, count: reply.descriptors.count, expected: replyDescriptors.upperBound)
    }
    return reply
  }

  /// Sends a request without an answer of its own. `ack` overrides the policy; nothing is asked before
  /// REPLY_ACK is negotiated.
  public func set(
    _ request: FrontendRequest, payload: [UInt8] = [], descriptors: [Int32] = [], ack: Bool? = nil
  ) throws(FrontendError) -> Ack {
    let asks = acknowledges && (ack ?? ackPolicy.asks(request))
    return try exchange.withLock { _ throws(FrontendError) in
      try send(request, payload: payload, descriptors: descriptors, needReply: asks)
      return asks ? try receiveAck(request) : .notAsked
    }
  }

  /// Receives the acknowledgement of `request`: 8 bytes, 0 is good.
  public func receiveAck(_ request: FrontendRequest, timeout: Duration? = nil) throws(FrontendError) -> Ack {
    let reply = try receiveReply(to: request, size: 8, timeout: timeout)
    guard reply.descriptors.isEmpty else {
      throw .wrongDescriptorCount(request: request.rawValue, count: reply.descriptors.count, expected: 0)
    }
    var reader = WireReader(reply.payload)
    let value: UInt64 = reader.take()
    return value == 0 ? .ok : .nack(value)
  }
}
