// Postcopy messages (vhost-user, "Postcopy"): the guest runs here while the front-end still fetches its memory. In this order:
//
//   POSTCOPY_ADVISE        we answer with a userfaultfd
//   POSTCOPY_LISTEN        from now on memory comes as follows
//   SET_MEM_TABLE          mapped, closed to everybody; we answer with the table and our own addresses in it
//   SET_MEM_TABLE, empty   the front-end knows them: regions are registered, opened, and taken up
//   …                      rings run; missing pages are fetched as they are touched
//   POSTCOPY_END           all pages are there
//
// On the control thread. `Postcopy` says who else is there.

import HostIO
import VirtQueue

extension Session {
  func postcopyAdvise() -> Handling {
    guard let postcopy else { return .refused("POSTCOPY_ADVISE was not offered") }
    abandonPostcopy()
    do {
      let faults = try postcopy.source.make()
      answerDescriptor = try faults.share()
      try postcopy.watch(stream.raw, faults)
      self.faults = faults
      return .answer([])
    } catch {
      return .refused("no userfaultfd: \(error)")
    }
  }

  /// Memory that is there already would be touched past the front-end.
  func postcopyListen() -> Handling {
    guard faults != nil, memory.count == 0 else {
      limiter.warning("refused: POSTCOPY_LISTEN without POSTCOPY_ADVISE, or with memory")
      return .answer(PayloadWriter.u64(1))
    }
    memoryIsMissing = true
    return .answer(PayloadWriter.u64(0))
  }

  func postcopyEnd() -> Handling {
    guard let faults else {
      limiter.warning("refused: POSTCOPY_END without POSTCOPY_ADVISE")
      return .answer(PayloadWriter.u64(1))
    }
    faults.end()
    abandonPostcopy()
    return .answer(PayloadWriter.u64(0))
  }

  /// The front-end has gone, or begins anew. Whoever waits for a page finds its memory gone.
  func abandonPostcopy() {
    faults?.abandon()
    faults = nil
    postcopy?.unwatch()
    memoryIsMissing = false
    announcedMemory = nil
  }

  /// Tells the front-end where each region of a table lies here, which it has to know before we touch one.
  func announce(_ table: MemoryTable, _ order: [RegionDescription]) -> Handling {
    announcedMemory = table
    var answer = PayloadWriter()
    answer.u32(UInt32(order.count))
    answer.u32(0)
    for description in order {
      answer.u64(description.guestAddress)
      answer.u64(description.size)
      answer.u64(table.hostAddress(of: description) ?? 0)
      answer.u64(description.fileOffset)
    }
    return .answer(answer.bytes)
  }

  /// The front-end has read them.
  func openAnnouncedMemory(_ table: MemoryTable) -> Handling {
    announcedMemory = nil
    guard let faults else { return .refused("postcopy has ended") }
    do {
      for mapping in table.mappings { try faults.watch(mapping) }
    } catch {
      return .refused("postcopy: \(error)")
    }
    return take(table)
  }
}
