// The words of a packed ring, one by one: moves no honest driver makes. Tests of a back-end's nerves; the
// ring's thread, or another where the test is about races.

import CLinux

extension PackedDriverRing {
  /// Any descriptor; the slot is taken modulo the ring's size. The flags are stored last.
  public func rawSetDescriptor(_ slot: UInt16, address: UInt64, length: UInt32, id: UInt16, flags: UInt16) {
    // SAFETY: below `size`.
    let entry = unsafe descriptors + 16 * Int(slot % size)
    unsafe clx_store_relaxed_u64(entry, address)
    unsafe clx_store_relaxed_u32(entry + 8, length)
    unsafe clx_store_relaxed_u16(entry + 12, id)
    unsafe clx_store_release_u16(entry + 14, flags)
  }

  public func rawSetFlags(_ slot: UInt16, _ flags: UInt16) {
    // SAFETY: below `size`.
    unsafe clx_store_release_u16(descriptors + (16 * Int(slot % size) + 14), flags)
  }

  /// A descriptor as it is in memory.
  public func rawDescriptor(_ slot: UInt16) -> (address: UInt64, length: UInt32, id: UInt16, flags: UInt16) {
    // SAFETY: below `size`.
    let entry = unsafe descriptors + 16 * Int(slot % size)
    let flags = unsafe clx_load_acquire_u16(entry + 14)
    return unsafe (
      clx_load_relaxed_u64(entry), clx_load_relaxed_u32(entry + 8), clx_load_relaxed_u16(entry + 12), flags
    )
  }

  /// The flag bits that make a descriptor available in a lap, or used.
  public static func availableBits(wrap: Bool) -> UInt16 { wrap ? available : used }
  public static func usedBits(wrap: Bool) -> UInt16 { wrap ? available | used : 0 }

  /// Where the next chain goes, and the wrap counter there.
  public var rawPosition: (slot: UInt16, wrap: Bool) { (position, wrap) }

  /// 0 enable, 1 disable, 2 at a descriptor, 3 reserved.
  public func rawSetDriverEvent(offsetWrap: UInt16, flags: UInt16) {
    // SAFETY: the event structure.
    unsafe clx_store_release_u32(driverEvent, UInt32(offsetWrap) | UInt32(flags) << 16)
  }

  /// What the device last asked for.
  public var rawDeviceEvent: (offsetWrap: UInt16, flags: UInt16) {
    // SAFETY: the event structure.
    let event = unsafe clx_load_acquire_u32(deviceEvent)
    return (UInt16(truncatingIfNeeded: event), UInt16(truncatingIfNeeded: event >> 16))
  }

  /// Takes `count` raw descriptors at the position into the books, as one chain with a new id, and goes past
  /// them; the caller writes them. nil where they are not free.
  public mutating func rawAdopt(slots count: Int) -> UInt16? {
    guard count > 0, count <= free, hidden == 0 else { return nil }
    let id = takeID(slots: count)
    for _ in 0..<count {
      position &+= 1
      if position == size { (position, wrap) = (0, !wrap) }
    }
    undecided &+= UInt16(truncatingIfNeeded: count)
    return id
  }
}
