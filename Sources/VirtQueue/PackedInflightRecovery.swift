// Reads a packed ring's inflight log that an earlier process left, and puts it in order. Every value in it is checked:
// the region comes from the front-end. Before the ring starts, on its thread.

import CLinux

/// Where a packed ring goes on, and with what.
struct PackedInflightRecovery {
  let log: PackedLog
  private(set) var unfinished: [UnfinishedRequest] = []
  private(set) var freeHead: UInt16 = 0
  /// Where used descriptors go next; nil for a fresh log, which knows no better than SET_VRING_BASE.
  private(set) var used: PackedPosition?
  /// Descriptors of the ring that the unfinished requests take.
  var descriptorCount: Int { unfinished.reduce(0) { $0 + $1.descriptors.count } }

  /// `wordInRing` reads a descriptor's second half at a position below the ring's size.
  init(
    _ area: InflightArea, size: UInt16, start: PackedPosition, wordInRing: (UInt16) -> PackedWord
  ) throws(InflightError) {
    log = try PackedLog(area, size: size)
    switch log.version {
    case 0:
      makeFresh(start)
      return
    case 1: break
    case let version: throw .version(version)
    }
    guard log.storedCount == log.count else {
      throw .descriptorCount(log.storedCount, expected: log.count)
    }
    used = try settle(size: size, wordInRing: wordInRing)
    freeHead = log.certainFreeHead
    let free = try clearFree()
    unfinished = try collect(free: free)
    var ids = Set<UInt16>()
    for request in unfinished where request.id >= size || !ids.insert(request.id).inserted {
      throw .corrupt("buffer id \(request.id)")
    }
    guard descriptorCount <= Int(size) else { throw .corrupt("\(descriptorCount) descriptors in flight") }
  }

  private func makeFresh(_ start: PackedPosition) {
    for i in 0..<log.count { log.setNext(i, i &+ 1) }
    log.storedCount = log.count
    log.freeHead = 0
    log.certainFreeHead = 0
    log.used = start
    log.certainUsed = start
    clx_fence_compiler()
    log.version = 1
  }

  /// Decides about the completion that was under way: the ring shows whether its descriptor became used.
  private func settle(
    size: UInt16, wordInRing: (UInt16) -> PackedWord
  ) throws(InflightError) -> PackedPosition {
    let ahead = log.used
    let certain = log.certainUsed
    guard ahead.index < size, certain.index < size else { throw .corrupt("used position \(certain.index)") }
    if ahead.bits != certain.bits, wordInRing(certain.index).isUsed(at: certain) {
      log.certainFreeHead = log.freeHead
      log.certainUsed = ahead
      return ahead
    }
    // What ran ahead did not happen.
    log.freeHead = log.certainFreeHead
    log.used = certain
    return certain
  }

  /// Nothing on the free list is in flight, whatever its mark says. The list ends with `count`.
  private func clearFree() throws(InflightError) -> [Bool] {
    var free = [Bool](repeating: false, count: Int(log.count))
    var index = freeHead
    while index < log.count {
      guard !free[Int(index)] else { throw .corrupt("a loop in the free list at \(index)") }
      free[Int(index)] = true
      log.setInFlight(index, false)
      index = log.next(index)
    }
    return free
  }

  private func collect(free: [Bool]) throws(InflightError) -> [UnfinishedRequest] {
    var found: [UnfinishedRequest] = []
    var taken = free
    for head in 0..<log.count where log.isInFlight(head) {
      let number = log.number(head)
      guard number > 0, number <= log.count else { throw .corrupt("a request of \(number) descriptors") }
      var descriptors: [PackedCopy] = []
      var index = head
      while true {
        guard index < log.count, !taken[Int(index)] else { throw .corrupt("entry \(index) in two places") }
        taken[Int(index)] = true
        descriptors.append(log.copy(index))
        if descriptors.count == Int(number) { break }
        index = log.next(index)
      }
      guard index == log.last(head) else {
        throw .corrupt("a request that ends at \(index), expected \(log.last(head))")
      }
      found.append(UnfinishedRequest(entry: head, counter: log.counter(head), descriptors: descriptors))
    }
    return found.sorted { $0.counter < $1.counter }
  }
}
