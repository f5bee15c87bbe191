// Who is told what by a packed ring, and the arithmetic of events against a count that never wraps.

import Testing
import VirtQueue

@Suite("Event arithmetic")
struct EventIndexTests {
  @Test("Split: a batch passes an event exactly where one of its positions is the event")
  func split() {
    for old: UInt16 in [0, 1, 5, 0x7ff0, 0x7fff, 0x8000, 0xfff0, 0xffff] {
      for count: UInt16 in [1, 2, 3, 17, 255] {
        let new = old &+ count
        let positions = Set((0..<count).map { old &+ $0 })
        for event in stride(from: 0, through: 0xffff, by: count < 20 ? 1 : 3) {
          let event = UInt16(event)
          guard EventIndex.passed(event: event, new: new, old: old) != positions.contains(event) else {
            continue
          }
          Issue.record("event \(event), \(old) to \(new)")
        }
      }
      #expect(!EventIndex.passed(event: old, new: old, old: old), "nothing passes nothing")
      #expect(EventIndex.passed(event: old &+ 32767, new: old &+ 32768, old: old))
      #expect(!EventIndex.passed(event: old &+ 32768, new: old &+ 32768, old: old))
    }
  }

  @Test("Packed: the same, over every position, wrap counter and batch of small rings", arguments: 1...12)
  func packed(size: Int) {
    func name(_ position: Int) -> UInt16 { UInt16(position % size) | (position / size % 2 == 0 ? 0x8000 : 0) }
    // Two laps are all there is to tell apart.
    for start in 0..<2 * size {
      for count in 1...size {
        let end = start + count
        let positions = Set((start..<end).map(name))
        for event in 0..<2 * size {
          let passed = EventIndex.passed(
            event: name(event), new: UInt16(end % size), old: UInt16(start % size), wrap: end / size % 2 == 0,
            size: UInt16(size))
          #expect(passed == positions.contains(name(event)), "\(start) to \(end), event \(event)")
        }
      }
    }
  }

  @Test("Packed: the same in large rings, sampled", arguments: [100, 255, 256, 32767, 32768])
  func packedLarge(size: Int) {
    var dice = Dice(UInt64(size))
    func name(_ position: Int) -> UInt16 { UInt16(position % size) | (position / size % 2 == 0 ? 0x8000 : 0) }
    for round in 0..<20_000 {
      let start = Int.random(in: 0..<2 * size, using: &dice)
      let count = round % 3 == 0 ? size : Int.random(in: 1...size, using: &dice)
      let end = start + count
      let near = Int.random(in: -2...2, using: &dice)
      let event = [start + near, end + near, Int.random(in: 0..<4 * size, using: &dice)][
        round % 3 == 0 ? round % 2 : round % 3]
      let position = (event + 4 * size) % (2 * size)
      // In the batch, at this lap or two laps on.
      let isIn = (start..<end).contains(position) || (start..<end).contains(position + 2 * size)
      let passed = EventIndex.passed(
        event: name(position), new: UInt16(end % size), old: UInt16(start % size), wrap: end / size % 2 == 0,
        size: UInt16(size))
      guard passed != isIn else { continue }
      Issue.record("\(start) to \(end), event \(position)")
    }
  }

  @Test("PR08: an offset that no position has counts as passed")
  func outside() {
    for size: UInt16 in [1, 2, 3, 7, 100, 32767] {
      for offset in [size, min(size + 1, 0x7fff), 0x7fff] {
        for wrap in [false, true] {
          for event in [offset, offset | 0x8000] {
            for new in [0, size / 2, size - 1] {
              for old in [0, size / 2, size - 1] {
                #expect(
                  EventIndex.passed(event: event, new: new, old: old, wrap: wrap, size: size),
                  "\(size): \(event), \(old) to \(new)")
              }
            }
          }
        }
      }
    }
  }
}

@Suite("Packed ring, notifications")
struct PackedNotificationTests {
  private func batch(_ rig: PackedRig, _ count: Int, length: Int = 1) -> Notify {
    for _ in 0..<count {
      _ = rig.driver.add([Piece](repeating: .read(Place.read, 1), count: length), .direct)
    }
    while let chain = rig.ring.next() { rig.ring.complete(chain, written: 0) }
    let notify = rig.ring.publish()
    while rig.driver.collect() != nil {}
    return notify
  }

  @Test("ENABLE calls, DISABLE does not, and the offset means nothing with either")
  func flags() throws {
    for eventIndex in [false, true] {
      let rig = try PackedRig(eventIndex: eventIndex)
      for offset: UInt16 in [0, 7, 0x8000, 0xffff] {
        rig.driver.setDriverEvent(offset, flags: 0)
        #expect(batch(rig, 1) == .call)
        rig.driver.setDriverEvent(offset, flags: 1)
        #expect(batch(rig, 2) == .none)
      }
    }
  }

  @Test(
    "PR08: the reserved value, and a position without EVENT_IDX, count as ENABLE; higher bits are ignored")
  func reserved() throws {
    for eventIndex in [false, true] {
      let rig = try PackedRig(eventIndex: eventIndex)
      for offset: UInt16 in [0, 5, 0x8003, 0xffff] {
        for flags: UInt16 in [3, 7, 0xffff, 4, 0xfffc] {
          rig.driver.setDriverEvent(offset, flags: flags)
          #expect(batch(rig, 1) == .call)
        }
        rig.driver.setDriverEvent(offset, flags: 0xfffd)
        #expect(batch(rig, 1) == .none)
      }
    }
    let plain = try PackedRig(eventIndex: false)
    for offset: UInt16 in [0, 5, 0x8003, 0xffff] {
      plain.driver.setDriverEvent(offset, flags: 2)
      #expect(batch(plain, 1) == .call)
    }
  }

  @Test(
    "A call comes exactly with the batch that passes the driver's position, in every lap",
    arguments: [1, 2, 3, 7, 8])
  func passing(size: Int) throws {
    for length in [1, 2, 3] where length <= size {
      for count in 1...(size / length) {
        let rig = try PackedRig(size: size)
        #expect(batch(rig, 1) == .call, "the first in any case")
        for _ in 0..<2 * size {
          // Every position of a lap before to a lap after; those further away have the same name.
          for place in -size..<size {
            let start = rig.driver.collected
            rig.driver.ask(.passing(start + place + 2 * size))
            // The same name two laps on is the same wish.
            let span = count * length
            let passes = (0..<span).contains(place) || (0..<span).contains(place + 2 * size)
            #expect(
              batch(rig, count, length: length) == (passes ? .call : .none), "\(length) \(count) \(place)")
          }
        }
      }
    }
  }

  @Test("The first publication calls wherever the position is, but not a driver that wants none")
  func first() throws {
    for event: UInt16 in [0, 3, 7, 0x8000, 0x8007] {
      let rig = try PackedRig()
      rig.driver.setDriverEvent(event, flags: 2)
      #expect(batch(rig, 1) == .call)
      let polled = try PackedRig()
      polled.driver.setDriverEvent(event, flags: 1)
      #expect(batch(polled, 1) == .none)
    }
  }

  @Test("PR08: offsets outside the ring and random ones never stall it", arguments: [1, 7, 8, 100])
  func poisoned(size: Int) throws {
    let rig = try PackedRig(size: size)
    var dice = Dice(8)
    for _ in 0..<2000 {
      let event = UInt16.random(in: 0...0xffff, using: &dice)
      rig.driver.setDriverEvent(event, flags: 2)
      let notify = batch(rig, Int.random(in: 1...size, using: &dice))
      if event & 0x7fff >= size { #expect(notify == .call) }
      rig.driver.ask(.passing(rig.driver.collected))
      #expect(batch(rig, 1) == .call)
    }
    #expect(rig.ring.fault == nil)
  }

  @Test("Parking asks for the next chain by its position; polling asks for nothing")
  func park() throws {
    for size in [1, 3, 8] {
      let rig = try PackedRig(size: size)
      for _ in 0..<4 * size {
        #expect(!rig.ring.park())
        #expect(rig.driver.deviceEventFlags == 2)
        #expect(rig.driver.deviceEventPosition == rig.driver.offsetAndWrap(rig.driver.added))
        _ = rig.driver.add([.read(Place.read, 1)], .direct)
        #expect(rig.driver.kickWanted())
        #expect(rig.ring.park(), "work has come meanwhile")
        rig.ring.unpark()
        #expect(rig.driver.deviceEventFlags == 1)
        rig.ring.serveAll()
        #expect(rig.driver.collect() != nil)
        _ = rig.driver.add([.read(Place.read, 1)], .direct)
        #expect(!rig.driver.kickWanted())
        rig.ring.serveAll()
        #expect(rig.driver.collect() != nil)
      }
    }
  }

  @Test("Parking without EVENT_IDX enables kicks, polling disables them")
  func parkByFlag() throws {
    let rig = try PackedRig(eventIndex: false)
    for _ in 0..<20 {
      #expect(!rig.ring.park())
      #expect(rig.driver.deviceEventFlags == 0)
      rig.ring.unpark()
      rig.ring.unpark()
      #expect(rig.driver.deviceEventFlags == 1)
      _ = rig.driver.add([.read(Place.read, 1)], .direct)
      #expect(rig.ring.serveAll().count == 1)
      #expect(rig.driver.collect() != nil)
    }
  }
}
