// The dirty log of a live migration: which memory it lies in, and which queues mark it. On the control thread; a change has
// reached every queue thread when its handler returns, so that the answer can be relied on: after a new log nobody marks the
// old one, after LOG_ALL every write is noted.

import HostIO
import VirtQueue

extension Session {
  /// Maps a log, has every ring use it, and lets go of the one before. Echoes the message: some front-ends insist.
  func setLogBase(_ reader: inout PayloadReader, _ file: consuming OwnedFD?) -> Handling {
    let size = reader.u64()
    let offset = reader.u64()
    guard let file else { return .refused("a log without its descriptor") }
    let log: DirtyLog
    do {
      log = try DirtyLog(file: file, offset: offset, size: size, memoryEnd: memory.guestEnd)
    } catch {
      return .refused("dirty log: \(error)")
    }
    let old = dirtyLog
    dirtyLog = log
    logRunningRings()
    if let lost = old?.lostPages, lost > 0 {
      limiter.warning("\(lost) pages that were written lay beyond the dirty log")
    }
    var answer = PayloadWriter()
    answer.u64(size)
    answer.u64(offset)
    return .answer(answer.bytes)
  }

  /// Signalled after marks were made; replaces the one before.
  func setLogSignal(_ descriptor: consuming OwnedFD?) -> Handling {
    guard let descriptor, EventFD.isEventFD(descriptor) else {
      return .refused("a log descriptor that is no eventfd")
    }
    logSignal = LogSignal(descriptor)
    logRunningRings()
    return .done
  }

  /// What a ring is to note; nil while there is nothing to.
  func queueLog(of ring: Vring) -> QueueLog? {
    guard let dirtyLog else { return nil }
    let marksBuffers = acknowledged.contains(.logAll)
    let marksRing = ring.addresses?.isLogged ?? false
    guard marksBuffers || marksRing else { return nil }
    // A packed ring is written in its descriptors too, and the address is of its event area alone; behind an IOMMU it is
    // none of the guest's. There the ring's place in memory tells.
    let known = !isPacked && !acknowledged.contains(.accessPlatform)
    var onMark: (@Sendable () -> Void)?
    if let logSignal { onMark = { logSignal.ring() } }
    return QueueLog(
      log: dirtyLog, marksBuffers: marksBuffers, marksRing: marksRing,
      usedAddress: known ? ring.addresses?.logAddress : nil, onMark: onMark)
  }

  /// Brings every running ring to what is to be noted now.
  func logRunningRings() {
    for (index, ring) in rings.enumerated() where ring.started {
      host.setLog(index, queueLog(of: ring))
    }
  }
}
