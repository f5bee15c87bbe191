// The protocol as data: what each message must look like before a handler sees it. One row a message; a message without
// a row is not served.

/// A message's payload.
package enum PayloadRule: Equatable {
  case exactly(Int)
  /// {u32 count, u32 padding, count regions of 32 bytes}.
  case memoryTable
  /// {u32 offset, u32 size, u32 flags, size bytes}.
  case config
  /// {u64 size, u64 offset, u16 queues, u16 queue size}, with the C structure's padding or without.
  case inflight

  /// Whether a payload of this many bytes, beginning so, has the right size.
  func accepts(_ payload: [UInt8]) -> Bool {
    var reader = PayloadReader(payload)
    switch self {
    case .exactly(let size): return payload.count == size
    case .inflight: return payload.count == 24 || payload.count == 20
    case .memoryTable:
      guard payload.count >= 8 else { return false }
      return UInt64(payload.count) == 8 + 32 * UInt64(reader.u32())
    case .config:
      guard payload.count >= 12 else { return false }
      _ = reader.u32()
      return UInt64(payload.count) == 12 + UInt64(reader.u32())
    }
  }
}

/// The descriptors that come with a message.
package enum DescriptorRule: Equatable {
  case none
  case one
  /// One, or none where bit 8 of the payload (NOFD) says so.
  case oneUnlessMarked
  /// One may come, and is closed.
  case closed
  /// As many as the table has regions.
  case onePerRegion
}

/// What the front-end is told.
package enum ReplyRule: Equatable {
  /// The message has an answer of its own, whatever NEED_REPLY says.
  case own
  /// The same, but that a refusal can be said, by a u64, to those who set NEED_REPLY.
  case ownOrRefusal
  /// A u64 where REPLY_ACK is negotiated and NEED_REPLY set; else nothing.
  case acknowledgement
}

package struct MessageRule {
  package let request: Request
  package let payload: PayloadRule
  let descriptors: DescriptorRule
  let reply: ReplyRule
  /// Must have been negotiated before.
  let needs: ProtocolFeatures

  private init(
    _ request: Request, _ payload: PayloadRule = .exactly(0), _ descriptors: DescriptorRule = .none,
    reply: ReplyRule = .acknowledgement, needs: ProtocolFeatures = []
  ) {
    self.request = request
    self.payload = payload
    self.descriptors = descriptors
    self.reply = reply
    self.needs = needs
  }

  package static let all: [MessageRule] = [
    MessageRule(.getFeatures, reply: .own),
    MessageRule(.setFeatures, .exactly(8)),
    MessageRule(.setOwner),
    MessageRule(.resetOwner),
    MessageRule(.setMemoryTable, .memoryTable, .onePerRegion),
    MessageRule(.setLogBase, .exactly(16), .one, reply: .ownOrRefusal, needs: .logSharedMemory),
    MessageRule(.setLogFD, .exactly(0), .one),
    MessageRule(.setVringNum, .exactly(8)),
    MessageRule(.setVringAddress, .exactly(40)),
    MessageRule(.setVringBase, .exactly(8)),
    MessageRule(.getVringBase, .exactly(8), reply: .own),
    MessageRule(.setVringKick, .exactly(8), .oneUnlessMarked),
    MessageRule(.setVringCall, .exactly(8), .oneUnlessMarked),
    MessageRule(.setVringError, .exactly(8), .oneUnlessMarked),
    MessageRule(.getProtocolFeatures, reply: .own),
    MessageRule(.setProtocolFeatures, .exactly(8)),
    // Some front-ends ask without having negotiated MQ.
    MessageRule(.getQueueNum, reply: .own),
    MessageRule(.setVringEnable, .exactly(8)),
    MessageRule(.sendRARP, .exactly(8), needs: .rarp),
    MessageRule(.setNetworkMTU, .exactly(8), needs: .networkMTU),
    MessageRule(.setBackendFD, .exactly(0), .one, needs: .backendRequests),
    MessageRule(.iotlbMessage, .exactly(32), reply: .own),
    MessageRule(.getConfig, .config, reply: .own, needs: .config),
    MessageRule(.setConfig, .config, needs: .config),
    MessageRule(.getInflightFD, .inflight, reply: .own, needs: .inflight),
    MessageRule(.setInflightFD, .inflight, .one, needs: .inflight),
    MessageRule(.resetDevice, needs: .resetDevice),
    MessageRule(.getMaxMemorySlots, reply: .own, needs: .memorySlots),
    MessageRule(.addMemoryRegion, .exactly(40), .one, needs: .memorySlots),
    MessageRule(.removeMemoryRegion, .exactly(40), .closed, needs: .memorySlots),
    MessageRule(.setStatus, .exactly(8), needs: .status),
    MessageRule(.getStatus, reply: .own, needs: .status),
    MessageRule(.postcopyAdvise, reply: .own, needs: .pageFault),
    // Answered in any case: QEMU asks without having negotiated to.
    MessageRule(.postcopyListen, reply: .ownOrRefusal, needs: .pageFault),
    MessageRule(.postcopyEnd, reply: .ownOrRefusal, needs: .pageFault),
    MessageRule(.setDeviceStateFD, .exactly(8), .one, reply: .own, needs: .deviceState),
    MessageRule(.checkDeviceState, reply: .own, needs: .deviceState),
  ]

  package static let byRequest: [UInt32: MessageRule] = Dictionary(
    uniqueKeysWithValues: all.map { ($0.request.rawValue, $0) })

  /// How many descriptors must have come; nil where any number from 0 to 1 may.
  func wantedDescriptors(_ payload: [UInt8]) -> Int? {
    var reader = PayloadReader(payload)
    switch descriptors {
    case .none: return 0
    case .one: return 1
    case .oneUnlessMarked: return reader.u64() & 0x100 != 0 ? 0 : 1
    case .closed: return nil
    case .onePerRegion: return Int(reader.u32())
    }
  }
}
