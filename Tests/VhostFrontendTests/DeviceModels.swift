// Devices for the driver's rings to talk to: a few lines each, from the specification's device sections, over
// the raw memory of the arena. They trust the driver, and share no code with anything. One thread each.

import CLinux
import VhostFrontend

struct DeviceChain: Equatable {
  /// Head or buffer id.
  var id: UInt16
  /// Descriptors of the ring it took.
  var slots: Int
  var buffers: [DescriptorSpec]
}

protocol DeviceModel: AnyObject {
  func next() -> DeviceChain?
  func complete(_ chain: DeviceChain, written: UInt32)
  /// Shows what was completed; whether the driver wants to be told.
  func publish() -> Bool
  /// Asks for kicks; true when something is available already.
  func askForKicks() -> Bool
  func declineKicks()
}

private func load16(_ p: UnsafeRawPointer) -> UInt16 { clx_load_acquire_u16(p) }
private func load32(_ p: UnsafeRawPointer) -> UInt32 { clx_load_acquire_u32(p) }

/// virtio 1.3 §2.7
final class SplitDevice: DeviceModel {
  let arena: GuestArena
  let size: Int
  let eventIndex: Bool
  let descriptors, available, used: UnsafeMutableRawPointer
  var lastAvailable: UInt16
  var usedIndex: UInt16
  var signalled: UInt16

  init(_ areas: RingAreas, size: UInt16, eventIndex: Bool, in arena: GuestArena, start: UInt16 = 0) throws {
    self.arena = arena
    self.size = Int(size)
    self.eventIndex = eventIndex
    descriptors = try arena.pointer(to: areas.descriptors, bytes: 16 * self.size)
    available = try arena.pointer(to: areas.driver, bytes: 6 + 2 * self.size)
    used = try arena.pointer(to: areas.device, bytes: 6 + 8 * self.size)
    (lastAvailable, usedIndex, signalled) = (start, start, start)
  }

  func next() -> DeviceChain? {
    guard load16(available + 2) != lastAvailable else { return nil }
    let head = load16(available + 4 + 2 * (Int(lastAvailable) % size))
    lastAvailable &+= 1
    var chain = DeviceChain(id: head, slots: 0, buffers: [])
    var table = UnsafeRawPointer(descriptors)
    var index = Int(head)
    var inRing = true
    while true {
      let entry = table + 16 * index
      let address = entry.load(as: UInt64.self)
      let (length, flags) = (entry.load(fromByteOffset: 8, as: UInt32.self), load16(entry + 12))
      if inRing { chain.slots += 1 }
      if flags & 4 != 0 {
        precondition(inRing && flags & 1 == 0)
        guard let memory = try? arena.pointer(to: address, bytes: Int(length)) else { return nil }
        table = UnsafeRawPointer(memory)
        (index, inRing) = (0, false)
        continue
      }
      chain.buffers.append(DescriptorSpec(address, length, write: flags & 2 != 0))
      guard flags & 1 != 0 else { return chain }
      index = Int(load16(entry + 14))
    }
  }

  func complete(_ chain: DeviceChain, written: UInt32) {
    let entry = used + 4 + 8 * (Int(usedIndex) % size)
    entry.storeBytes(of: UInt32(chain.id), as: UInt32.self)
    entry.storeBytes(of: written, toByteOffset: 4, as: UInt32.self)
    usedIndex &+= 1
  }

  func publish() -> Bool {
    clx_store_release_u16(used + 2, usedIndex)
    clx_fence_full()
    let old = signalled
    signalled = usedIndex
    guard eventIndex else { return load16(available) & 1 == 0 }
    let event = load16(available + 4 + 2 * size)
    // Was the entry `event` among those from `old` up to here?
    return usedIndex &- old > event &- old
  }

  func askForKicks() -> Bool {
    if eventIndex {
      clx_store_relaxed_u16(used + 4 + 8 * size, lastAvailable)
    } else {
      clx_store_relaxed_u16(used, 0)
    }
    clx_fence_full()
    return load16(available + 2) != lastAvailable
  }

  func declineKicks() {
    if !eventIndex { clx_store_relaxed_u16(used, 1) }
  }
}

/// virtio 1.3 §2.8
final class PackedDevice: DeviceModel {
  let arena: GuestArena
  let size: Int
  let eventIndex: Bool
  let ring, driverEvent, deviceEvent: UnsafeMutableRawPointer
  // Positions that never wrap: the slot is the remainder, the wrap counter is 1 in even laps.
  var position: Int
  var usedPosition: Int
  var signalled: Int

  init(_ areas: RingAreas, size: UInt16, eventIndex: Bool, in arena: GuestArena, start: UInt16 = 0x8000)
    throws
  {
    self.arena = arena
    self.size = Int(size)
    self.eventIndex = eventIndex
    ring = try arena.pointer(to: areas.descriptors, bytes: 16 * self.size)
    driverEvent = try arena.pointer(to: areas.driver, bytes: 4)
    deviceEvent = try arena.pointer(to: areas.device, bytes: 4)
    position = Int(start & 0x7fff) + (start & 0x8000 != 0 ? 0 : self.size)
    (usedPosition, signalled) = (position, position)
  }

  private func wrap(_ position: Int) -> Bool { position / size % 2 == 0 }

  private func isAvailable() -> Bool {
    let flags = load16(ring + 16 * (position % size) + 14)
    return flags & 0x8080 == (wrap(position) ? 0x0080 : 0x8000)
  }

  func next() -> DeviceChain? {
    guard isAvailable() else { return nil }
    var chain = DeviceChain(id: 0, slots: 0, buffers: [])
    while true {
      let entry = ring + 16 * (position % size)
      let flags = load16(entry + 14)
      let (address, length) = (entry.load(as: UInt64.self), entry.load(fromByteOffset: 8, as: UInt32.self))
      precondition(flags & 0x8080 == (wrap(position) ? 0x0080 : 0x8000))
      chain.id = entry.load(fromByteOffset: 12, as: UInt16.self)
      chain.slots += 1
      position += 1
      if flags & 4 != 0 {
        precondition(flags & 1 == 0 && chain.slots == 1)
        guard let table = try? arena.pointer(to: address, bytes: Int(length)) else { return nil }
        for index in 0..<Int(length) / 16 {
          let flags = load16(table + 16 * index + 14)
          precondition(flags & ~2 == 0)
          chain.buffers.append(
            DescriptorSpec(
              table.load(fromByteOffset: 16 * index, as: UInt64.self),
              table.load(fromByteOffset: 16 * index + 8, as: UInt32.self), write: flags & 2 != 0))
        }
        return chain
      }
      chain.buffers.append(DescriptorSpec(address, length, write: flags & 2 != 0))
      if flags & 1 == 0 { return chain }
    }
  }

  func complete(_ chain: DeviceChain, written: UInt32) {
    let entry = ring + 16 * (usedPosition % size)
    entry.storeBytes(of: written, toByteOffset: 8, as: UInt32.self)
    entry.storeBytes(of: chain.id, toByteOffset: 12, as: UInt16.self)
    let flags: UInt16 = (wrap(usedPosition) ? 0x8080 : 0) | (written > 0 ? 2 : 0)
    clx_store_release_u16(entry + 14, flags)
    usedPosition += chain.slots
  }

  func publish() -> Bool {
    clx_fence_full()
    let old = signalled
    signalled = usedPosition
    let event = load32(driverEvent)
    switch event >> 16 {
    case 0: return true
    case 1: return false
    default:
      // The next position at or after `old` with this offset and wrap counter.
      let offset = Int(event & 0x7fff)
      var target = old / size * size + offset
      while target < old || wrap(target) != (event & 0x8000 != 0) { target += size }
      return target < usedPosition
    }
  }

  func askForKicks() -> Bool {
    let wanted = UInt32(position % size) | (wrap(position) ? 0x8000 : 0)
    clx_store_release_u32(deviceEvent, eventIndex ? wanted | 2 << 16 : 0)
    clx_fence_full()
    return isAvailable()
  }

  func declineKicks() { clx_store_release_u32(deviceEvent, 1 << 16) }
}

/// A driver's ring with a device at its other end.
struct RingPair {
  let arena: GuestArena
  let ring: AnyDriverRing
  let device: any DeviceModel

  init(_ options: DriverRingOptions, packed: Bool) throws {
    let size = Int(options.size)
    arena = try GuestArena(bytes: 40 * size + 16 * size * options.indirectCapacity + (1 << 16))
    ring = try AnyDriverRing(options, packed: packed, in: arena)
    if packed {
      device = try PackedDevice(
        ring.areas, size: options.size, eventIndex: options.eventIndex, in: arena,
        start: options.start ?? 0x8000)
    } else {
      device = try SplitDevice(
        ring.areas, size: options.size, eventIndex: options.eventIndex, in: arena, start: options.start ?? 0)
    }
  }
}

/// A generator that gives the same numbers each time.
struct Dice: RandomNumberGenerator {
  var state: UInt64
  init(seed: UInt64) { state = seed &* 0x9e37_79b9_7f4a_7c15 | 1 }
  mutating func next() -> UInt64 {
    state ^= state << 13
    state ^= state >> 7
    state ^= state << 17
    return state
  }
}
