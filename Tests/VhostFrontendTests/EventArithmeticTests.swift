// The notification arithmetic against counting one by one.

import Testing
import VhostFrontend

@Suite("Event arithmetic") struct EventArithmeticTests {
  @Test("an event is passed when an index from old up to before new is it, around 65536 too")
  func split() {
    for old in [0, 1, 5, 65530, 65535] as [UInt16] {
      for step in 0...8 as ClosedRange<UInt16> {
        for ahead in 0...12 as ClosedRange<UInt16> {
          let event = old &+ ahead &- 2
          let passed = (0..<step).contains { old &+ $0 == event }
          #expect(EventArithmetic.needs(event: event, new: old &+ step, old: old) == passed)
        }
      }
    }
  }

  @Test("the same for packed positions, with any offset and wrap counter", arguments: [1, 2, 3, 7, 8])
  func packed(size: Int) {
    // Positions that never wrap, from the second lap on.
    for old in size..<3 * size {
      for step in 1...size {
        let new = old + step
        for offset in 0..<size {
          for lap in [false, true] {
            // Does a position from old up to before new have this offset and wrap counter?
            let passed = (old..<new).contains { $0 % size == offset && ($0 / size % 2 == 0) == lap }
            let wrap = new / size % 2 == 0
            let position = UInt16(new % size)
            let event = UInt16(offset) | (lap ? 0x8000 : 0)
            let needs = EventArithmetic.needs(
              offsetWrap: event, new: position, old: position &- UInt16(step), wrap: wrap, size: UInt16(size))
            #expect(needs == passed, "size \(size) old \(old) new \(new) offset \(offset) wrap \(lap)")
          }
        }
      }
    }
  }
}
