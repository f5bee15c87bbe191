// Inflight messages: making the region that survives us, and taking up the one that survived an earlier process. On the
// control thread; rings take up their areas when they start.

import HostIO

extension Session {
  /// Makes a region. The ring format must have been negotiated; an answer with size 0 says that there is none.
  func getInflight(_ reader: inout PayloadReader) -> Handling {
    _ = reader.u64()
    _ = reader.u64()
    let shape = InflightRegion.Shape(queues: reader.u16(), queueSize: reader.u16())
    var size: UInt64 = 0
    do {
      try shape.check(queueLimit: rings.count)
      let wanted = shape.size(packed: isPacked)
      answerDescriptor = try InflightRegion.makeFile(of: wanted)
      size = wanted
    } catch {
      limiter.warning("no inflight region: \(error)")
    }
    var answer = PayloadWriter()
    answer.u64(size)
    answer.u64(0)
    answer.u16(shape.queues)
    answer.u16(shape.queueSize)
    answer.u32(0)
    return .answer(answer.bytes)
  }

  /// Takes up a region. What it knows of the device counts for more than what this process began with.
  func setInflight(_ reader: inout PayloadReader, _ file: consuming OwnedFD?) -> Handling {
    let size = reader.u64()
    let offset = reader.u64()
    let shape = InflightRegion.Shape(queues: reader.u16(), queueSize: reader.u16())
    guard let file else { return .refused("an inflight region without its descriptor") }
    do {
      try shape.check(queueLimit: rings.count)
      let region = try InflightRegion(shape, packed: isPacked, offset: offset, size: size, file: file)
      let state = region.savedState(packed: isPacked)
      guard region.isWhole else { return .refused("an inflight region that is cut off") }
      inflight = region
      if let state { host.device.restore(state) }
      saveDeviceState()
      return .done
    } catch {
      return .refused("inflight region: \(error)")
    }
  }

  /// Keeps what a later process must know; after every message that may change it.
  func saveDeviceState() { inflight?.save(host.device.savedState, packed: isPacked) }
}
