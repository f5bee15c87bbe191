// One connection of one front-end, on the control thread: receives messages, holds each against its rule, hands it to its
// handler, and answers. Handlers are in Session+Features, Session+Memory and Session+Rings.

import DeviceKit
import HostIO
import Logging
import VirtQueue

/// What a handler decided.
enum Handling {
  case done
  /// The message's own answer.
  case answer([UInt8])
  /// Not possible, and nothing was changed: NACK.
  case refused(String)
}

/// Why a session ended.
enum SessionEnd: Equatable {
  case peerClosed
  case stopped
  /// The peer broke the protocol, or the socket failed.
  case dropped(String)
}

/// A vhost-user session, back-end side. Use: `run()`, once; then let go.
final class Session {
  /// How long a front-end may leave an answer unread.
  static let sendTimeout = Duration.seconds(10)

  let host: DeviceHost
  let log: Logger
  /// For what the peer can cause as often as it likes.
  let limiter: LogLimiter
  let stream: UnixStream
  let stop: Int32
  let channel: BackendChannel
  /// Where queue threads leave what is to be translated.
  let desk: MissDesk

  let offered: FeatureSet
  var acknowledged: FeatureSet = []
  let offeredProtocol: ProtocolFeatures
  var negotiatedProtocol: ProtocolFeatures = []
  /// The device status as the front-end set it; told back, and nothing more.
  var status: UInt8 = 0
  var memory = MemoryTable()
  var map: GuestMemoryMap?
  var inflight: InflightRegion?
  /// Where writes to guest memory are noted, once the front-end has said so.
  var dirtyLog: DirtyLog?
  var logSignal: LogSignal?
  /// Behind an IOMMU.
  var translation: Translation?
  var toldOfWait = false
  /// The device's state on its way to us or from us, until the front-end has asked how it went.
  var stateTransfer: StateTransfer?
  /// The state that the device came with, until it runs.
  var loadedState: DeviceState?
  /// How guests come in by postcopy; nil: not at all.
  let postcopy: Postcopy?
  /// The faults of a guest that is coming in, whether its memory comes with holes, and what is mapped and not yet known to it.
  var faults: UserFaults?
  var memoryIsMissing = false
  var announcedMemory: MemoryTable?
  /// Goes out with the next answer.
  var answerDescriptor: OwnedFD?
  let rings: [Vring]

  /// `stop` is a descriptor whose readability ends the session.
  init(
    host: DeviceHost, stream: consuming UnixStream, stop: Int32, channel: BackendChannel,
    desk: MissDesk, log: Logger, limiter: LogLimiter, offersStatus: Bool = false, postcopy: Postcopy? = nil
  ) {
    self.host = host
    self.stream = stream
    self.stop = stop
    self.channel = channel
    self.desk = desk
    self.log = log
    self.limiter = limiter
    offered = host.device.features.union(Self.transportFeatures(of: host.device))
    self.postcopy = postcopy
    var features = Self.protocolFeatures(of: host.device)
    if offersStatus { features.insert(.status) }
    if postcopy != nil {
      // Postcopy and memory slots exclude each other (vhost-user, "Postcopy").
      features.insert(.pageFault)
      features.remove(.memorySlots)
    }
    offeredProtocol = features
    rings = (0..<host.queueLimit).map { _ in Vring() }
  }

  /// Serves the front-end until it goes, breaks the protocol, or `stop` is signalled. Queues are stopped and their last
  /// requests done when this returns.
  func run() -> SessionEnd {
    let end = serve()
    channel.set(nil)
    abandonPostcopy()
    stopAll()
    for ring in rings { ring.reset() }
    _ = host.pin(nil)
    return end
  }

  private func serve() -> SessionEnd {
    // What the last session's queues left.
    _ = desk.takeAll()
    while true {
      awaitMessage()
      takeIncomingState()
      var descriptors = DescriptorBag()
      do {
        guard
          let header = try receive(MessageHeader.byteCount, &descriptors, atStart: true).map(
            MessageHeader.init)
        else { return lastEnd }
        guard header.version == 1 else { return .dropped("message version \(header.version), expected 1") }
        guard header.size <= MessageHeader.payloadLimit else {
          return .dropped(
            "a payload of \(header.size) bytes, at most \(MessageHeader.payloadLimit) are possible")
        }
        guard let payload = try receive(Int(header.size), &descriptors, atStart: false) else {
          return lastEnd
        }
        if let reason = try handle(header, payload, &descriptors) { return .dropped(reason) }
      } catch {
        return .dropped("\(error)")
      }
    }
  }

  private var lastEnd = SessionEnd.peerClosed

  /// `count` bytes; nil, with `lastEnd` set, where the session is over.
  private func receive(
    _ count: Int, _ descriptors: inout DescriptorBag, atStart: Bool
  ) throws(HostError) -> [UInt8]? {
    var bytes = [UInt8](repeating: 0, count: count)
    if count == 0 { return bytes }
    var outcome = StreamOutcome.complete
    var failure: HostError?
    // SAFETY: the array's own storage; `receive` writes within it.
    unsafe bytes.withUnsafeMutableBytes { buffer in
      do throws(HostError) {
        outcome = unsafe try stream.receive(into: buffer, collecting: &descriptors, stop: stop)
      } catch {
        failure = error
      }
    }
    if let failure { throw failure }
    switch outcome {
    case .complete: return bytes
    case .stopped, .timedOut: lastEnd = .stopped
    case .endOfStream where atStart: lastEnd = .peerClosed
    case .endOfStream, .endInsideMessage: lastEnd = .dropped("the connection ended within a message")
    }
    return nil
  }

  /// Holds a message against its rule and handles it. A reason ends the session.
  private func handle(
    _ header: MessageHeader, _ payload: [UInt8], _ descriptors: inout DescriptorBag
  ) throws(HostError) -> String? {
    guard let rule = MessageRule.byRequest[header.request] else {
      // Unknown requests are no reason to leave (vhost-user, "Communication").
      return try settle(
        .refused("request \(header.request) is not known"), header, .acknowledgement, tolerated: true)
    }
    let name = "\(rule.request)"
    guard rule.payload.accepts(payload) else { return "\(name): a payload of \(payload.count) bytes" }
    let wanted = rule.wantedDescriptors(payload)
    guard descriptors.count == wanted ?? min(descriptors.count, 1) else {
      // An answer of its own cannot say no.
      let reason = "\(name): \(descriptors.count) descriptors, expected \(wanted ?? 1)"
      if rule.reply == .own { return reason }
      return try settle(.refused(reason), header, rule.reply)
    }
    guard negotiatedProtocol.isSuperset(of: rule.needs) else {
      let reason = "\(name): its protocol feature was not negotiated"
      if rule.reply == .own { return reason }
      return try settle(.refused(reason), header, rule.reply)
    }
    var reader = PayloadReader(payload)
    let handling = dispatch(rule.request, &reader, &descriptors)
    return try settle(handling, header, rule.reply)
  }

  private func dispatch(
    _ request: Request, _ reader: inout PayloadReader, _ descriptors: inout DescriptorBag
  ) -> Handling {
    switch request {
    case .getFeatures: .answer(PayloadWriter.u64(offered.rawValue))
    case .setFeatures: setFeatures(FeatureSet(rawValue: reader.u64()))
    case .setOwner, .resetOwner: .done
    case .setMemoryTable: setMemoryTable(&reader, &descriptors)
    case .setLogBase: setLogBase(&reader, descriptors.takeFirst())
    case .setLogFD: setLogSignal(descriptors.takeFirst())
    case .setVringNum: onRing(reader.u32()) { setSize($0, reader.u32()) }
    case .setVringAddress: onRing(reader.u32()) { setAddresses($0, VringAddresses(&reader)) }
    case .setVringBase: onRing(reader.u32()) { setBase($0, reader.u32()) }
    case .getVringBase: getBase(reader.u32())
    case .setVringKick: onMarkedRing(reader.u64()) { setKick($0, $1, descriptors.takeFirst()) }
    case .setVringCall: onMarkedRing(reader.u64()) { _, ring in setCall(ring, descriptors.takeFirst()) }
    case .setVringError: onMarkedRing(reader.u64()) { _, ring in setError(ring, descriptors.takeFirst()) }
    case .getProtocolFeatures: .answer(PayloadWriter.u64(offeredProtocol.rawValue))
    case .setProtocolFeatures: setProtocolFeatures(ProtocolFeatures(rawValue: reader.u64()))
    case .getQueueNum: .answer(PayloadWriter.u64(UInt64(rings.count)))
    case .setVringEnable: onRing(reader.u32()) { setEnabled($0, reader.u32()) }
    case .sendRARP: announce(reader.u64())
    case .setNetworkMTU: setPacketLimit(reader.u64())
    case .setBackendFD: setBackendChannel(descriptors.takeFirst())
    case .iotlbMessage: iotlbMessage(&reader)
    case .getConfig: getConfig(&reader)
    case .setConfig: setConfig(&reader)
    case .getInflightFD: getInflight(&reader)
    case .setInflightFD: setInflight(&reader, descriptors.takeFirst())
    case .resetDevice: resetDevice()
    case .getMaxMemorySlots: .answer(PayloadWriter.u64(UInt64(MemoryTable.slotLimit)))
    case .addMemoryRegion: addRegion(&reader, descriptors.takeFirst())
    case .removeMemoryRegion: removeRegion(&reader)
    case .setStatus: setStatus(reader.u64())
    case .getStatus: .answer(PayloadWriter.u64(UInt64(status)))
    case .postcopyAdvise: postcopyAdvise()
    case .postcopyListen: postcopyListen()
    case .postcopyEnd: postcopyEnd()
    case .setDeviceStateFD: setStateChannel(&reader, descriptors.takeFirst())
    case .checkDeviceState: checkState()
    }
  }

  /// Answers as the outcome and the header ask. A reason ends the session: without REPLY_ACK a front-end that was refused
  /// something would go on as if it had been granted.
  private func settle(
    _ handling: Handling, _ header: MessageHeader, _ rule: ReplyRule, tolerated: Bool = false
  ) throws(HostError) -> String? {
    let acknowledges = rule != .own && header.needsReply && negotiatedProtocol.contains(.replyAck)
    switch handling {
    case .answer(let payload): return try send(header.request, payload)
    case .done: return acknowledges ? try send(header.request, PayloadWriter.u64(0)) : nil
    case .refused(let reason):
      // An answer of its own that nobody can read as a refusal.
      if rule == .own || rule == .ownOrRefusal && !acknowledges { return reason }
      if !negotiatedProtocol.contains(.replyAck), !tolerated { return reason }
      limiter.warning("refused: \(reason)")
      return acknowledges ? try send(header.request, PayloadWriter.u64(1)) : nil
    }
  }

  private func send(_ request: UInt32, _ payload: [UInt8]) throws(HostError) -> String? {
    let descriptor = answerDescriptor.take() ?? OwnedFD(adopting: -1)
    let bytes = MessageHeader.reply(to: request, size: payload.count) + payload
    var outcome = StreamOutcome.complete
    var failure: HostError?
    // SAFETY: the array's own storage; `send` reads it.
    unsafe bytes.withUnsafeBytes { buffer in
      do throws(HostError) {
        outcome = unsafe try stream.send(
          buffer, descriptors: descriptor.raw >= 0 ? [descriptor.raw] : [], stop: stop,
          timeout: Self.sendTimeout)
      } catch {
        failure = error
      }
    }
    if let failure { throw failure }
    switch outcome {
    case .complete: return nil
    case .timedOut: return "the front-end does not read its answers"
    default: return "the connection ended within an answer"
    }
  }
}
