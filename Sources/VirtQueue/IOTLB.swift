// What a front-end has told of its IOMMU (vhost-user, "IOMMU support"): which I/O virtual addresses lead to which of its user
// addresses, and what may be done there. One a session. The control thread changes it; queue threads look into it, a piece of
// a buffer at a time. A lock, and not a map with a generation: behind an IOMMU a request brings mappings of its own and
// takes them away again, so that a copy of the table a change would be a copy a request.

import Synchronization

/// What an access does to memory, and what a mapping allows; as the wire has it (1 read, 2 write, 3 both).
public struct AccessRights: OptionSet, Sendable, Hashable {
  public let rawValue: UInt8
  public init(rawValue: UInt8) { self.rawValue = rawValue }
  public static let read = AccessRights(rawValue: 1)
  public static let write = AccessRights(rawValue: 2)
}

/// A range of I/O virtual addresses that is not empty: both ends are in it, so that it may reach the last address there is.
public struct IOVARange: Sendable, Hashable {
  public let first: UInt64
  public let last: UInt64

  /// Nil where it is empty or runs past the last address.
  public init?(_ first: UInt64, size: UInt64) {
    guard size > 0, case let (last, overflow) = first.addingReportingOverflow(size - 1), !overflow else {
      return nil
    }
    (self.first, self.last) = (first, last)
  }

  /// `last` must not be below `first`.
  public init(first: UInt64, last: UInt64) { (self.first, self.last) = (first, max(first, last)) }

  /// Every address.
  public static var everything: IOVARange { IOVARange(first: 0, last: .max) }

  public func overlaps(_ other: IOVARange) -> Bool { first <= other.last && other.first <= last }
  public func contains(_ address: UInt64) -> Bool { first <= address && address <= last }
}

/// An access that no mapping allows, or none yet.
public struct TranslationMiss: Sendable, Hashable {
  public let address: UInt64
  public let access: AccessRights
  public init(address: UInt64, access: AccessRights) {
    self.address = address
    self.access = access
  }
}

/// A bounded table of mappings: sorted, without overlaps. Where it is full, the one that nobody has looked at for longest goes:
/// it will be asked for again.
public final class IOTLB: Sendable {
  /// Twice what the kernel's vhost keeps.
  public static var capacity: Int { 4096 }

  private struct Entry {
    var first: UInt64
    var last: UInt64
    /// The front-end's address of `first`.
    var user: UInt64
    var rights: AccessRights
    var lastUse: UInt64
  }

  private struct State {
    var entries: [Entry] = []
    /// Counts looks.
    var clock: UInt64 = 0

    /// The first entry that ends at or behind an address.
    func place(of address: UInt64) -> Int {
      var low = 0
      var high = entries.count
      while low < high {
        let middle = (low + high) / 2
        if entries[middle].last < address { low = middle + 1 } else { high = middle }
      }
      return low
    }

    /// Cuts a range out of the table; where it was is returned.
    mutating func cut(_ range: IOVARange) -> Int {
      let from = place(of: range.first)
      var to = from
      var rest: [Entry] = []
      while to < entries.count, entries[to].first <= range.last {
        let entry = entries[to]
        if entry.first < range.first {
          var head = entry
          head.last = range.first - 1
          rest.append(head)
        }
        if entry.last > range.last {
          var tail = entry
          tail.first = range.last + 1
          // The entry's own end did not overflow when it was taken in.
          tail.user = entry.user &+ (tail.first - entry.first)
          rest.append(tail)
        }
        to += 1
      }
      let keepsHead = rest.first.map { $0.first < range.first } ?? false
      entries.replaceSubrange(from..<to, with: rest)
      return keepsHead ? from + 1 : from
    }

    /// Leaves out what nobody has looked at for longest, until there is room.
    mutating func bound() {
      while entries.count > IOTLB.capacity {
        guard let oldest = entries.indices.min(by: { entries[$0].lastUse < entries[$1].lastUse }) else {
          return
        }
        entries.remove(at: oldest)
      }
    }
  }
  private let state = Mutex(State())

  public init() {}

  public var count: Int { state.withLock { $0.entries.count } }

  /// Maps a range to user addresses from `user` on, which must not overflow; replaces what was there.
  public func update(_ range: IOVARange, user: UInt64, rights: AccessRights) {
    state.withLock { state in
      let place = state.cut(range)
      state.clock &+= 1
      let entry = Entry(
        first: range.first, last: range.last, user: user, rights: rights, lastUse: state.clock)
      state.entries.insert(entry, at: place)
      state.bound()
    }
  }

  /// Whether a range leads anywhere else than it would by such an update, or allows more than it would then.
  public func conflicts(_ range: IOVARange, user: UInt64, rights: AccessRights) -> Bool {
    state.withLock { state in
      var i = state.place(of: range.first)
      while i < state.entries.count, state.entries[i].first <= range.last {
        let entry = state.entries[i]
        if entry.user &- entry.first != user &- range.first || !rights.isSuperset(of: entry.rights) {
          return true
        }
        i += 1
      }
      return false
    }
  }

  /// Nothing in the range is mapped from now on. Whoever found something in it before may still use it.
  public func remove(_ range: IOVARange) {
    state.withLock { state in
      _ = state.cut(range)
      // Out of the middle of a mapping: one more than there was.
      state.bound()
    }
  }

  /// The user address that an access leads to, and how many of `length` bytes lie on from there in one mapping.
  public func find(
    _ address: UInt64, upTo length: UInt64, for access: AccessRights
  ) -> (user: UInt64, count: UInt64)? {
    state.withLock { state in
      let place = state.place(of: address)
      guard place < state.entries.count else { return nil }
      let entry = state.entries[place]
      guard entry.first <= address, entry.rights.isSuperset(of: access) else { return nil }
      state.clock &+= 1
      state.entries[place].lastUse = state.clock
      // No mapping is 2^64 bytes long, so this does not wrap.
      return (entry.user &+ (address - entry.first), min(length, entry.last - address + 1))
    }
  }

  /// Accesses to a buffer that nothing allows: the first such address of each page, at most `limit` of them.
  package func misses(
    at address: UInt64, _ length: UInt64, for access: AccessRights, limit: Int
  ) -> [TranslationMiss] {
    var misses: [TranslationMiss] = []
    guard let range = IOVARange(address, size: length) else { return misses }
    var at = range.first
    while misses.count < limit {
      let step: UInt64
      if let found = find(at, upTo: range.last - at + 1, for: access) {
        step = found.count
      } else {
        misses.append(TranslationMiss(address: at, access: access))
        step = 4096 - at % 4096
      }
      guard range.last - at >= step else { break }
      at += step
    }
    return misses
  }
}
