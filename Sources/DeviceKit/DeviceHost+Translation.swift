// Queues behind an IOMMU: taking memory away from them, and having them go on. Called by one control thread at a time.

import HostIO
import VirtQueue

extension DeviceHost {
  /// Waits until no queue has a chain out that reaches into a range. Those named in `suspended` complete all that they have
  /// taken, take nothing more, and touch their rings no more, until `resume`. What chains find from now on is the caller's
  /// affair: the range is to be out of the IOTLB before. `waiting` is called every second that this takes.
  public func revoke(
    _ range: IOVARange, from indices: [Int], suspending suspended: Set<Int>,
    waiting: (Duration) -> Void = { _ in }
  ) {
    let replies = indices.compactMap { index -> Reply<Void>? in
      guard places.indices.contains(index) else { return nil }
      let reply = Reply<Void>()
      let place = places[index]
      let part = suspended.contains(index) ? nil : range
      place.thread.mailbox.post { core in core.clear(place.seat, of: part) { reply.fulfil(()) } }
      return reply
    }
    var waited = Duration.zero
    for reply in replies {
      while reply.wait(timeout: .seconds(1)) == nil {
        waited += .seconds(1)
        waiting(waited)
      }
    }
  }

  /// Has a queue go on that waits for a translation: it tries its next chain again, without the accesses in `denied`, which
  /// are holes in it. `map`: the ring itself was out of reach, and is looked up anew. False where it is not found.
  @discardableResult
  public func resume(_ index: Int, on map: GuestMemoryMap? = nil, denied: [TranslationMiss] = []) -> Bool {
    onRunner(index) { $0.resume(on: map, denied: denied) } ?? false
  }
}
