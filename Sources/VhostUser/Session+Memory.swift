// Memory messages: a change is prepared beside what is in use, taken up by every running ring, and then kept. On the
// control thread.

import DeviceKit
import HostIO
import VirtQueue

extension Session {
  func setMemoryTable(_ reader: inout PayloadReader, _ descriptors: inout DescriptorBag) -> Handling {
    let count = Int(reader.u32())
    _ = reader.u32()
    if count == 0, let announcedMemory { return openAnnouncedMemory(announcedMemory) }
    guard (1...MemoryTable.tableLimit).contains(count) else {
      return .refused("a memory table of \(count) regions, expected 1 to \(MemoryTable.tableLimit)")
    }
    var table = MemoryTable()
    var order: [RegionDescription] = []
    for _ in 0..<count {
      let description = RegionDescription(&reader)
      guard let file = descriptors.takeFirst() else { return .refused("a region without its descriptor") }
      // The very same region twice in one table is an overlap.
      guard !table.contains(description) else { return .refused("a region that is in the table twice") }
      do {
        try table.add(description, file: file, closed: memoryIsMissing)
      } catch {
        return .refused("memory table: \(error)")
      }
      order.append(description)
    }
    return memoryIsMissing ? announce(table, order) : take(table)
  }

  func addRegion(_ reader: inout PayloadReader, _ file: consuming OwnedFD?) -> Handling {
    _ = reader.u64()
    let description = RegionDescription(&reader)
    // Sent once per queue pair by some front-ends.
    if memory.contains(description) { return .done }
    guard let file else { return .refused("a region without its descriptor") }
    var table = memory
    do { try table.add(description, file: file) } catch { return .refused("memory region: \(error)") }
    return take(table)
  }

  func removeRegion(_ reader: inout PayloadReader) -> Handling {
    _ = reader.u64()
    let description = RegionDescription(&reader)
    var table = memory
    do { try table.remove(description) } catch { return .refused("memory region: \(error)") }
    return table.count == memory.count ? .done : take(table)
  }

  /// Makes a table the one in use: every running ring has switched to it when this returns. Refused, with the old one in
  /// place, where it does not hold a running ring.
  func take(_ table: MemoryTable) -> Handling {
    let next: GuestMemoryMap
    do {
      next = try table.makeMap(generation: (map?.generation ?? 0) &+ 1, iotlb: translation?.iotlb)
    } catch {
      return .refused("memory table: \(error)")
    }
    suspendMissing(in: next)
    let running = rings.indices.filter(isRunning)
    for index in running where !holds(rings[index], next) {
      return .refused("memory table: ring \(index) runs and is not in it")
    }
    if let error = host.pin(next) {
      limiter.warning(
        "guest memory is not held in place, requests go without: \(error); the limit of locked memory (RLIMIT_MEMLOCK, "
          + "ulimit -l, LimitMEMLOCK=) must be above the guest's memory")
    }
    for index in host.move(running, to: next) {
      limiter.warning("ring \(index) is not in the new memory table")
    }
    memory = table
    map = next
    goOn(with: .everything)
    return .done
  }
}
