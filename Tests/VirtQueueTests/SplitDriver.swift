// A split queue written by hand (virtio 1.3 §2.7): raw writers for what no driver would do, and chains for what drivers do.

import CLinux
import VirtQueue

final class SplitDriver: TestDriver {
  let memory: TestMemory
  let size: Int
  let layout: RingLayout
  let descriptors: UInt64
  let available: UInt64
  let used: UInt64
  private let eventIndex: Bool
  /// Not wrapped: how many chains were made available, decided about, and collected.
  private var added: Int
  private var decided: Int
  private(set) var collected: Int
  private var free: [UInt16]
  private var takenBy: [[UInt16]]

  init(
    memory: TestMemory, size: Int, base: UInt16 = 0, indirect: Bool = true, eventIndex: Bool = true,
    at start: UInt64 = Place.ring
  ) {
    self.memory = memory
    self.size = size
    self.eventIndex = eventIndex
    descriptors = start
    available = start + UInt64(16 * size)
    used = (available + UInt64(6 + 2 * size) + 3) / 4 * 4
    layout = RingLayout(
      size: UInt16(size), descriptorArea: memory.user(descriptors), driverArea: memory.user(available),
      deviceArea: memory.user(used), base: UInt32(base), indirect: indirect, eventIndex: eventIndex)
    added = Int(base)
    decided = added
    collected = added
    free = (0..<UInt16(size)).reversed()
    takenBy = Array(repeating: [], count: size)
    setAvailableIndex(base)
    store16(base, at: used + 2)
  }

  // MARK: Raw writers

  /// A descriptor of the ring, or of the table at `table`.
  func put(
    _ index: Int, _ address: UInt64, _ length: UInt32, _ flags: UInt16 = 0, next: UInt16 = 0,
    table: UInt64? = nil
  ) {
    let place = (table ?? descriptors) + 16 * UInt64(index)
    let rest = UInt64(length) | UInt64(flags) << 32 | UInt64(next) << 48
    memory.store(address, rest, at: place)
  }

  /// Writes the next available entry and shows it.
  func offer(_ head: UInt16) {
    write(head)
    setAvailableIndex(UInt16(truncatingIfNeeded: added))
  }

  /// Writes the next available entry only.
  func write(_ head: UInt16) {
    store16(head, at: available + 4 + 2 * UInt64(added % size))
    added += 1
  }

  var availableIndex: UInt16 { UInt16(truncatingIfNeeded: added) }
  func setAvailableIndex(_ index: UInt16) { store16(index, at: available + 2) }
  func setAvailableFlags(_ flags: UInt16) { store16(flags, at: available) }
  func setUsedEvent(_ index: UInt16) { store16(index, at: available + 4 + 2 * UInt64(size)) }
  var usedFlags: UInt16 { load16(used) }
  var usedIndex: UInt16 { load16(used + 2) }
  var availableEvent: UInt16 { load16(used + 4 + 8 * UInt64(size)) }
  func usedElement(_ index: Int) -> (id: UInt32, length: UInt32) {
    let place = memory.host(used + 4 + 8 * UInt64(index % size))
    return (clx_load_relaxed_u32(place), clx_load_relaxed_u32(place + 4))
  }

  // MARK: Chains

  func add(_ pieces: [Piece], _ shape: Shape) -> UInt16? {
    let needed = shape.ringDescriptors(pieces.count)
    guard needed <= free.count else { return nil }
    let taken = (0..<needed).map { _ in free.removeLast() }
    let head = taken[0]
    let direct = if case .mixed(let direct) = shape { direct } else { shape == .direct ? pieces.count : 0 }
    for (i, index) in taken.enumerated() where i < direct {
      let flags = (i + 1 < taken.count ? Bits.next : 0) | (pieces[i].writable ? Bits.write : 0)
      put(
        Int(index), pieces[i].address, UInt32(pieces[i].length), flags,
        next: i + 1 < taken.count ? taken[i + 1] : 0xffff)
    }
    if direct < pieces.count {
      let rest = pieces[direct...]
      putTable(Array(rest), at: table(of: head))
      put(Int(taken[direct]), table(of: head), UInt32(16 * rest.count), Bits.indirect)
    }
    takenBy[Int(head)] = taken
    offer(head)
    return head
  }

  /// Links a chain through a table, the last entry of which comes first where there are three or more.
  private func putTable(_ pieces: [Piece], at table: UInt64) {
    var places = Array(pieces.indices)
    if pieces.count > 2 { places[1...].reverse() }
    for (i, piece) in pieces.enumerated() {
      let isLast = i + 1 == pieces.count
      put(
        places[i], piece.address, UInt32(piece.length),
        (isLast ? 0 : Bits.next) | (piece.writable ? Bits.write : 0),
        next: isLast ? 0xffff : UInt16(places[i + 1]), table: table)
    }
  }

  var hasUsed: Bool { usedIndex != UInt16(truncatingIfNeeded: collected) }

  func collect() -> (token: UInt16, length: Int)? {
    guard hasUsed else { return nil }
    let element = usedElement(collected)
    collected += 1
    guard element.id < size, !takenBy[Int(element.id)].isEmpty else { return (0xffff, Int(element.length)) }
    free += takenBy[Int(element.id)].reversed()
    takenBy[Int(element.id)] = []
    return (UInt16(element.id), Int(element.length))
  }

  // MARK: Notifications

  func ask(_ wish: Wish) {
    switch wish {
    case .always:
      setAvailableFlags(0)
      if eventIndex { setUsedEvent(UInt16(truncatingIfNeeded: collected)) }
    case .never:
      setAvailableFlags(1)
      if eventIndex { setUsedEvent(UInt16(truncatingIfNeeded: collected - 1)) }
    case .passing(let position): setUsedEvent(UInt16(truncatingIfNeeded: position))
    }
    clx_fence_full()
  }

  func kickWanted() -> Bool {
    clx_fence_full()
    let passed = decided..<added
    decided = added
    if passed.isEmpty { return false }
    if !eventIndex { return usedFlags & 1 == 0 }
    let event = availableEvent
    return passed.contains { UInt16(truncatingIfNeeded: $0) == event }
  }
}
