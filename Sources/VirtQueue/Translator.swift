// A ring's way through an IOTLB: translates the buffers of a chain, notes what the chain reaches while it is out, and keeps
// back what it cannot translate yet. Only rings behind an IOMMU have one. On the queue's thread.

import CLinux
import Glibc

/// What a ring behind an IOMMU knows beside its slots.
@usableFromInline final class Translator {
  /// The most addresses that are asked for at once: a large request's pages come in a few rounds.
  static var missLimit: Int { 64 }
  /// After so many rounds a chain does without what is still missing: more than its longest list of pages would need.
  static var roundLimit: Int { 256 }

  let iotlb: IOTLB
  /// What the chains that are out may reach, by slot.
  private var reached: [[IOVARange]]
  /// What the next chain cannot be given out for.
  private(set) var misses: [TranslationMiss] = []
  /// What the next chain is not to wait for any more: the front-end has none for it.
  private var denied: Set<TranslationMiss> = []
  private var rounds = 0
  /// The last walk ended in a miss: the next one is of the same chain.
  private var isRetry = false
  /// The walk that goes on began with its table.
  var hasBegun = false

  init(_ iotlb: IOTLB, slots: Int) {
    self.iotlb = iotlb
    reached = Array(repeating: [], count: slots)
  }

  var hasMisses: Bool { !misses.isEmpty }

  /// A walk begins in a slot.
  func begin(_ slot: Int) {
    reached[slot].removeAll(keepingCapacity: true)
    if !isRetry {
      rounds = 0
      denied = []
    }
    isRetry = false
  }

  func note(_ range: IOVARange, in slot: Int) {
    if let last = reached[slot].last, last.last < .max, last.last + 1 == range.first {
      reached[slot][reached[slot].count - 1] = IOVARange(first: last.first, last: range.last)
    } else {
      reached[slot].append(range)
    }
  }

  /// A chain moves from one slot to another.
  func move(from slot: Int, to own: Int) { reached.swapAt(slot, own) }

  func reaches(_ range: IOVARange, from slot: Int) -> Bool { reached[slot].contains { $0.overlaps(range) } }

  /// Notes what is missing of a buffer from an address on, where that is to be waited for; else it is a hole.
  func missed(_ address: UInt64, _ length: UInt64, for access: AccessRights) {
    let found = iotlb.misses(at: address, length, for: access, limit: Self.missLimit)
    let fresh = found.filter { !denied.contains($0) }
    guard rounds < Self.roundLimit, let first = fresh.first, first.address == address else { return }
    isRetry = true
    for miss in fresh where misses.count < Self.missLimit && !misses.contains(miss) { misses.append(miss) }
  }

  /// The chain was put back; what it waits for.
  func takeMisses() -> [TranslationMiss] {
    rounds += 1
    defer { misses = [] }
    return misses
  }

  /// The chain is tried again, without what the front-end will not map.
  func retry(denied: [TranslationMiss]) {
    misses = []
    self.denied.formUnion(denied)
  }
}

extension SlotTable {
  /// A buffer behind an IOMMU: each mapping, and each region, is a piece of its own. What is not mapped yet is noted, and
  /// stands as a hole in a chain that will not be given out.
  mutating func appendTranslated(
    _ address: UInt64, _ length: UInt32, by translator: Translator, _ walk: inout Walk,
    to slot: UnsafeMutablePointer<Slot>
  ) -> QueueFault? {
    // SAFETY (all of the body): the slot is one of the table's, and the walk's segments are its array, `count` of them
    // written; pieces are in guest memory.
    let own = unsafe slot - slots
    if unsafe walk.count == 0, !translator.hasBegun { translator.begin(own) }
    // The buffer's own direction: nothing readable comes after what is writable.
    let access: AccessRights = unsafe walk.sawWritable ? .write : .read
    var at = address
    var left = UInt64(length)
    var isFirst = true
    while left > 0 {
      guard let piece = unsafe translatedPiece(at: at, upTo: left, for: access, by: translator) else {
        unsafe walk.hasHole = true
        translator.missed(at, left, for: access)
        return unsafe place(nil, Int(left), &walk, in: slot)
      }
      let count = unsafe piece.count
      translator.note(IOVARange(first: at, last: at &+ (count - 1)), in: own)
      // Mappings of one page each, side by side in memory, are one segment.
      let last = unsafe Int(walk.count) - 1
      if !isFirst,
        unsafe walk.segments[last].iov_base.map({ unsafe $0 + walk.segments[last].iov_len })
          == piece.start
      {
        unsafe walk.segments[last].iov_len += Int(count)
      } else if let fault = unsafe place(piece.start, Int(count), &walk, in: slot) {
        return fault
      }
      isFirst = false
      left -= count
      let (next, wrapped) = at.addingReportingOverflow(count)
      if wrapped, left > 0 {
        unsafe walk.hasHole = true
        return unsafe place(nil, Int(left), &walk, in: slot)
      }
      at = next
    }
    return nil
  }

  /// A run of bytes in one mapping and one region; nil where nothing is mapped, or where it leads to no memory of ours.
  private mutating func translatedPiece(
    at address: UInt64, upTo length: UInt64, for access: AccessRights, by translator: Translator
  ) -> HostPiece? {
    guard let found = translator.iotlb.find(address, upTo: length, for: access) else { return nil }
    // SAFETY: looks into the map that the table holds.
    return unsafe userView.piece(at: found.user, upTo: found.count, hint: &userHint)
  }

  /// An indirect table behind an IOMMU: apart, so that the walk of one that is not keeps its registers.
  @inline(never)
  mutating func appendTranslatedTable(
    _ address: UInt64, _ byteCount: UInt32, _ alreadySeen: UInt32, _ sequential: Bool, _ walk: inout Walk,
    _ slot: UnsafeMutablePointer<Slot>
  ) -> QueueFault? {
    guard let translator else { return nil }
    // SAFETY: the slot is the caller's; entries are below the table's length.
    let isFirst = unsafe walk.count == 0
    if isFirst { unsafe translator.begin(slot - slots) }
    guard let words = translatedTable(at: address, byteCount: byteCount, by: translator) else {
      return translator.hasMisses ? .translationPending : .indirectUnmapped(address)
    }
    translator.hasBegun = isFirst
    defer { translator.hasBegun = false }
    let table = TableWalk(
      entries: byteCount / 16, seen: alreadySeen, sequential: sequential, address: address)
    return unsafe walkTable(table, &walk, slot) {
      SplitDescriptor(address: words[2 * Int($0)], rest: words[2 * Int($0) + 1])
    }
  }

  /// Copies an indirect table out, each byte once; nil where a part of it is not mapped.
  func translatedTable(at address: UInt64, byteCount: UInt32, by translator: Translator) -> [UInt64]? {
    var words = [UInt64](repeating: 0, count: Int(byteCount) / 8)
    var hint = 0
    var done: UInt64 = 0
    while done < UInt64(byteCount) {
      let left = UInt64(byteCount) - done
      let (at, wrapped) = address.addingReportingOverflow(done)
      guard !wrapped, let found = translator.iotlb.find(at, upTo: left, for: .read),
        let piece = unsafe userView.piece(at: found.user, upTo: found.count, hint: &hint)
      else {
        if !wrapped { translator.missed(at, left, for: .read) }
        return nil
      }
      // SAFETY: looked up in the map that the table holds; the piece is in guest memory, and no longer than what is left of the array.
      unsafe words.withUnsafeMutableBytes {
        if let base = $0.baseAddress {
          unsafe clx_copy_once(base + Int(done), piece.start, UInt(piece.count))
        }
      }
      done += unsafe piece.count
    }
    return words
  }

  /// Whether a chain with a hole in it is to be put back until its addresses are translated.
  @usableFromInline @inline(never)
  func awaitsTranslation() -> Bool { translator?.hasMisses ?? false }

  /// Whether a chain that is out may reach into a range.
  func reaches(_ range: IOVARange) -> Bool {
    guard let translator else { return false }
    // SAFETY: i is below `size`.
    for i in 0..<Int(size) where unsafe slots[i].state != .free {
      if translator.reaches(range, from: i) { return true }
    }
    return false
  }
}
