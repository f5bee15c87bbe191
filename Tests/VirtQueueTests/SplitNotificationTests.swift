// Who is told what by a split ring: calls to the driver, kicks from it.

import Testing
import VirtQueue

@Suite("Split ring, notifications")
struct SplitNotificationTests {
  /// Makes `count` chains available, serves them, publishes once.
  private func batch(_ rig: SplitRig, _ count: Int) -> Notify {
    for i in 0..<count {
      rig.driver.put(i, Place.read, 1)
      rig.driver.offer(UInt16(i))
    }
    while let chain = rig.ring.next() { rig.ring.complete(chain, written: 0) }
    return rig.ring.publish()
  }

  @Test("Without EVENT_IDX the driver's flag alone decides, at the first publication too")
  func flag() throws {
    let rig = try SplitRig(eventIndex: false)
    rig.driver.setAvailableFlags(1)
    #expect(batch(rig, 1) == .none)
    rig.driver.setAvailableFlags(0)
    #expect(batch(rig, 1) == .call)
    #expect(batch(rig, 8) == .call)
    rig.driver.setAvailableFlags(1)
    #expect(batch(rig, 8) == .none)
  }

  @Test("With EVENT_IDX the first publication calls, wherever the event is, and the flag means nothing")
  func first() throws {
    for event: UInt16 in [0, 1, 7, 0x8000, 0xffff] {
      for flags: UInt16 in [0, 1] {
        let rig = try SplitRig()
        rig.driver.setUsedEvent(event)
        rig.driver.setAvailableFlags(flags)
        #expect(batch(rig, 1) == .call)
      }
    }
  }

  @Test("SR15: a call comes exactly with the batch that passes the driver's event, at every place of it")
  func passing() throws {
    for base: UInt16 in [0, 0xfff0, 0xfffc, 0x7ffe] {
      for count in 1...8 {
        for place in -20...30 {
          let rig = try SplitRig(size: 8, base: base)
          #expect(batch(rig, 1) == .call)
          let event = base &+ 1 &+ UInt16(truncatingIfNeeded: place)
          rig.driver.setUsedEvent(event)
          #expect(batch(rig, count) == (0..<count ~= place ? .call : .none), "\(base) \(count) \(place)")
        }
      }
    }
  }

  @Test("SR15: an event that is far away, behind or random never stalls the ring")
  func poisonedEvent() throws {
    let rig = try SplitRig(size: 64, base: 0xff00)
    var dice = Dice(15)
    for round in 0..<3000 {
      rig.driver.setUsedEvent(UInt16.random(in: 0...0xffff, using: &dice))
      _ = batch(rig, Int.random(in: 1...64, using: &dice))
      #expect(rig.ring.fault == nil, "\(round)")
      // One that asks for the next is told.
      rig.driver.setUsedEvent(rig.driver.usedIndex)
      #expect(batch(rig, 1) == .call)
    }
  }

  @Test("Parking without EVENT_IDX clears the flag that suppresses kicks; polling sets it")
  func parkByFlag() throws {
    let rig = try SplitRig(eventIndex: false)
    rig.ring.unpark()
    #expect(rig.driver.usedFlags == 1)
    #expect(!rig.ring.park())
    #expect(rig.driver.usedFlags == 0)
    rig.ring.unpark()
    rig.ring.unpark()
    #expect(rig.driver.usedFlags == 1)
    rig.driver.put(0, Place.read, 1)
    rig.driver.offer(0)
    #expect(rig.ring.park(), "work has come meanwhile")
    #expect(rig.ring.park(), "and is still there")
    #expect(rig.ring.serveAll() == [0])
    #expect(!rig.ring.park())
  }

  @Test("Parking with EVENT_IDX asks for the next chain by its index; the flag stays 0")
  func parkByEvent() throws {
    let rig = try SplitRig(base: 0xfffc)
    rig.driver.put(0, Place.read, 1)
    for i in 0..<6 {
      #expect(!rig.ring.park())
      #expect(rig.driver.availableEvent == UInt16(truncatingIfNeeded: 0xfffc + 2 * i))
      rig.driver.offer(0)
      #expect(rig.driver.kickWanted())
      #expect(rig.ring.park(), "work has come meanwhile")
      rig.ring.unpark()
      #expect(rig.ring.serveAll() == [0])
      rig.driver.offer(0)
      #expect(!rig.driver.kickWanted(), "the event stays behind while the device polls")
      #expect(rig.ring.serveAll() == [0])
      #expect(rig.driver.usedFlags == 0)
    }
  }
}
