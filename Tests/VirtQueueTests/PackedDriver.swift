// A packed queue written by hand (virtio 1.3 §2.8): raw writers for what no driver would do, and chains for what drivers do.

import CLinux
import VirtQueue

final class PackedDriver: TestDriver {
  let memory: TestMemory
  let size: Int
  let layout: RingLayout
  let descriptors: UInt64
  let driverEvent: UInt64
  let deviceEvent: UInt64
  private let eventIndex: Bool
  /// Positions that never wrap: descriptors made available, decided about, and collected. Even laps have the counter 1.
  private(set) var added: Int
  private var decided: Int
  private(set) var collected: Int
  private var freeIDs: [UInt16]
  private var free: Int
  /// Ring descriptors of the chain that is out under an id; 0: none is.
  private var taken: [Int]

  init(
    memory: TestMemory, size: Int, base: UInt32 = 0x8000_8000, indirect: Bool = true, eventIndex: Bool = true,
    at start: UInt64 = Place.ring
  ) {
    self.memory = memory
    self.size = size
    self.eventIndex = eventIndex
    descriptors = start
    driverEvent = start + UInt64(16 * size)
    deviceEvent = driverEvent + 4
    layout = RingLayout(
      size: UInt16(size), descriptorArea: memory.user(descriptors), driverArea: memory.user(driverEvent),
      deviceArea: memory.user(deviceEvent), base: base, indirect: indirect, eventIndex: eventIndex)
    // Rings start with nothing out.
    added = Int(base & 0x7fff) + (base & 0x8000 == 0 ? size : 0)
    decided = added
    collected = added
    // Ids in an order that has nothing to do with positions.
    freeIDs = (0..<UInt16(size)).map { UInt16((Int($0) * 7 + 3) % size) }
    if Set(freeIDs).count != size { freeIDs = (0..<UInt16(size)).reversed() }
    free = size
    taken = Array(repeating: 0, count: size)
    // What earlier laps left behind: everything used.
    for position in added - added % size..<added { put(position, 0, 0, id: 0, wrap(position) ? 0x8080 : 0) }
    for position in added..<added + size - added % size {
      put(position, 0, 0, id: 0, wrap(position) ? 0 : 0x8080)
    }
  }

  // MARK: Raw writers

  func wrap(_ position: Int) -> Bool { position / size % 2 == 0 }

  /// AVAIL and USED as a driver sets them at a position (virtio 1.3 §2.8.1).
  func marks(_ position: Int) -> UInt16 { wrap(position) ? Bits.available : Bits.used }

  /// A descriptor at a position, without marks of its own. Flags last, in one store with what the device reads with them: the thread
  /// sanitizer pairs a release with an acquire of the same bytes.
  func put(_ position: Int, _ address: UInt64, _ length: UInt32, id: UInt16, _ flags: UInt16) {
    let place = memory.host(descriptors + 16 * UInt64(position % size))
    clx_store_relaxed_u64(place, address)
    clx_store_release_u64(place + 8, UInt64(length) | UInt64(id) << 32 | UInt64(flags) << 48)
  }

  /// An entry of an indirect table: {address, length, id, flags}.
  func putTable(
    _ index: Int, _ address: UInt64, _ length: UInt32, _ flags: UInt16, table: UInt64, id: UInt16 = 0xdead
  ) {
    let place = table + 16 * UInt64(index)
    let rest = UInt64(length) | UInt64(id) << 32 | UInt64(flags) << 48
    memory.store(address, rest, at: place)
  }

  /// Makes raw descriptors available at the next positions, the first one's flags last. Marks are added.
  func offer(_ raw: [(address: UInt64, length: UInt32, id: UInt16, flags: UInt16)]) {
    for (i, one) in raw.enumerated().reversed() {
      put(added + i, one.address, one.length, id: one.id, one.flags | marks(added + i))
    }
    added += raw.count
  }

  func word(_ position: Int) -> (length: UInt32, id: UInt16, flags: UInt16) {
    let word = clx_load_acquire_u64(memory.host(descriptors + 16 * UInt64(position % size) + 8))
    return (
      UInt32(truncatingIfNeeded: word), UInt16(truncatingIfNeeded: word >> 32),
      UInt16(truncatingIfNeeded: word >> 48)
    )
  }

  func isUsed(_ position: Int) -> Bool {
    let flags = word(position).flags
    return (flags & Bits.available != 0) == wrap(position) && (flags & Bits.used != 0) == wrap(position)
  }

  func setDriverEvent(_ offsetAndWrap: UInt16, flags: UInt16) {
    store16(offsetAndWrap, at: driverEvent)
    store16(flags, at: driverEvent + 2)
  }
  var deviceEventFlags: UInt16 { load16(deviceEvent + 2) }
  var deviceEventPosition: UInt16 { load16(deviceEvent) }
  func offsetAndWrap(_ position: Int) -> UInt16 { UInt16(position % size) | (wrap(position) ? 0x8000 : 0) }

  // MARK: Chains

  func add(_ pieces: [Piece], _ shape: Shape) -> UInt16? {
    let needed = shape.ringDescriptors(pieces.count)
    guard needed <= free, let id = freeIDs.popLast() else { return nil }
    free -= needed
    taken[Int(id)] = needed
    switch shape {
    case .direct:
      offer(
        pieces.enumerated().map { i, piece in
          // Only the last one's id counts (virtio 1.3 §2.8.6).
          let isLast = i + 1 == pieces.count
          return (
            piece.address, UInt32(piece.length), isLast ? id : 0xffff,
            (piece.writable ? Bits.write : 0) | (isLast ? 0 : Bits.next)
          )
        })
    case .indirect, .mixed:
      let table = table(of: id)
      for (i, piece) in pieces.enumerated() {
        putTable(i, piece.address, UInt32(piece.length), piece.writable ? Bits.write : 0, table: table)
      }
      offer([(table, UInt32(16 * pieces.count), id, Bits.indirect)])
    }
    return id
  }

  var hasUsed: Bool { isUsed(collected) }

  func collect() -> (token: UInt16, length: Int)? {
    guard hasUsed else { return nil }
    let (length, id, flags) = word(collected)
    guard id < size, taken[Int(id)] > 0 else { return (0xffff, Int(length)) }
    collected += taken[Int(id)]
    free += taken[Int(id)]
    taken[Int(id)] = 0
    freeIDs.insert(id, at: 0)
    return (id, flags & Bits.write != 0 ? Int(length) : 0)
  }

  // MARK: Notifications

  func ask(_ wish: Wish) {
    switch wish {
    case .always: setDriverEvent(0, flags: 0)
    case .never: setDriverEvent(0, flags: 1)
    case .passing(let position): setDriverEvent(offsetAndWrap(position), flags: 2)
    }
    clx_fence_full()
  }

  func kickWanted() -> Bool {
    clx_fence_full()
    let passed = decided..<added
    decided = added
    if passed.isEmpty { return false }
    let flags = deviceEventFlags
    let event = deviceEventPosition
    switch flags {
    case 1: return false
    case 2: return passed.contains { offsetAndWrap($0) == event }
    default: return true
    }
  }
}
