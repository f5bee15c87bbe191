// What a disk must hold and what a driver must have been told, whatever became of the process between: a model beside a
// driver. One thread.

import Foundation
import Testing
import VhostFrontend

/// Submits reads and writes on all queues of a driver and knows the only right answer to each. No two requests that are
/// under way touch one block, so every answer has one right content.
final class Oracle {
  static let blockBytes = 4096
  let driver: BlockDriver
  let blocks: Int
  /// The number of the last write to each block; 0 is a block of zeros.
  private var expected: [UInt64]
  private var writes: UInt64 = 0
  private var underWay: [Place: Request] = [:]
  private(set) var completed = 0
  /// Whether the storage may fail requests, each of which it then leaves undone; how many failed.
  var toleratesErrors = false
  private(set) var failed = 0
  /// Requests that were answered after one that was submitted later on the same queue.
  private(set) var overtaken = 0
  private var submitted = 0
  private var newest: [Int: Int] = [:]

  private struct Place: Hashable {
    let queue: Int
    let slot: UInt16
  }
  private struct Request {
    let block: Int
    let isWrite: Bool
    let number: UInt64
    /// What the block held before, and which one this is in the order of submission.
    let previous: UInt64
    let order: Int
  }

  init(_ driver: BlockDriver, blocks: Int) {
    self.driver = driver
    self.blocks = blocks
    expected = [UInt64](repeating: 0, count: blocks)
  }

  var outstanding: Int { underWay.count }

  private static func content(_ number: UInt64) -> [UInt8] {
    number == 0
      ? [UInt8](repeating: 0, count: blockBytes) : BytePattern(seed: number).bytes(at: 0, count: blockBytes)
  }

  /// Submits one request to each of these blocks, in turn on each queue, a write where `writing` says so (else by chance);
  /// none of them may be under way.
  func submit(_ blocks: some Sequence<Int>, writing: (Int) -> Bool = { _ in Int.random(in: 0..<4) > 0 })
    throws
  {
    for (index, block) in blocks.enumerated() {
      let queue = index % driver.queues.count
      let isWrite = writing(block)
      let sector = UInt64(block * Self.blockBytes / 512)
      let previous = expected[block]
      submitted += 1
      if isWrite {
        writes += 1
        expected[block] = writes
      }
      let slot = try driver.queues[queue].submit(
        isWrite
          ? .write(sector: sector, Self.content(writes)) : .read(sector: sector, bytes: Self.blockBytes))
      underWay[Place(queue: queue, slot: slot)] = Request(
        block: block, isWrite: isWrite, number: expected[block], previous: previous, order: submitted)
    }
  }

  /// Takes what has come back, without waiting; how many that were.
  @discardableResult
  func collect() throws -> Int {
    var count = 0
    for queue in driver.queues.indices {
      while let (slot, result) = try driver.queues[queue].pollResult() {
        try check(Place(queue: queue, slot: slot), result)
        count += 1
      }
    }
    return count
  }

  /// Waits until no more than so many requests are under way.
  func wait(untilOutstanding limit: Int, within seconds: Double = 60) throws {
    let end = ContinuousClock.now + .seconds(seconds)
    while try outstanding - collect() > limit, underWay.count > limit {
      // Whichever queue answers next: a short look at each, so that none is waited for in vain.
      let waiting = Set(underWay.keys.map(\.queue))
      for queue in waiting where underWay.count > limit {
        do throws(FrontendError) {
          let (slot, result) = try driver.queues[queue].waitNext(timeout: .milliseconds(20))
          do { try check(Place(queue: queue, slot: slot), result) } catch { throw .wrongState("\(error)") }
        } catch {
          guard case .timedOut = error else { throw error }
        }
      }
      try #require(
        ContinuousClock.now < end, "not answered after \(seconds) s, \(limit) may be: \(underWay)")
    }
  }

  private func check(_ place: Place, _ result: DiskResult) throws {
    // A second answer has no request here.
    let found = underWay.removeValue(forKey: place)
    let request = try #require(found, "an answer to nothing: \(place)")
    completed += 1
    if request.order < newest[place.queue, default: 0] { overtaken += 1 }
    newest[place.queue] = max(newest[place.queue, default: 0], request.order)
    if toleratesErrors, result.status == DiskRequest.ioError {
      failed += 1
      if request.isWrite { expected[request.block] = request.previous }
      return
    }
    #expect(result.status == DiskRequest.ok && !result.overrun)
    if !request.isWrite {
      #expect(result.input == Self.content(request.number), "block \(request.block) reads as it was written")
    }
  }

  /// Compares the storage with all writes that were answered; with nothing under way, that is all of it.
  func compare(_ read: (_ offset: Int, _ count: Int) throws -> [UInt8]) rethrows {
    let unknown = Set(underWay.values.filter(\.isWrite).map(\.block))
    for block in 0..<blocks where !unknown.contains(block) {
      let bytes = try read(block * Self.blockBytes, Self.blockBytes)
      #expect(bytes == Self.content(expected[block]), "block \(block)")
    }
  }
}
