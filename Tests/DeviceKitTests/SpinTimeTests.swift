// How long a thread spins before it sleeps: as arithmetic.

import DeviceKit
import Testing

@Suite("spin time")
struct SpinTimeTests {
  private static let limit: UInt64 = 32_000

  @Test("it starts with the longest spin, and ends with none where work always comes later")
  func shrinks() {
    var spin = SpinTime(limit: Self.limit)
    #expect(spin.nanoseconds == Self.limit)
    for _ in 1..<SpinTime.patience { spin.slept(Self.limit + 10_000) }
    var last = spin.nanoseconds
    #expect(last == Self.limit)
    for _ in 0..<8 {
      spin.slept(Self.limit + 10_000)
      #expect(spin.nanoseconds < last || last == 0)
      last = spin.nanoseconds
    }
    #expect(spin.nanoseconds == 0)
  }

  @Test("work that came soon after the thread slept brings the spin back at once")
  func grows() {
    var spin = SpinTime(limit: Self.limit)
    for _ in 0..<20 { spin.slept(Self.limit + 10_000) }
    #expect(spin.nanoseconds == 0)
    spin.slept(Self.limit - 10_000)
    #expect(spin.nanoseconds == Self.limit)
  }

  @Test("long waits between short ones do not shorten it, and a limit of nothing stays so")
  func once() {
    var spin = SpinTime(limit: Self.limit)
    for _ in 0..<10 {
      spin.slept(5_000_000_000)
      spin.slept(Self.limit)
    }
    #expect(spin.nanoseconds == Self.limit)
    var none = SpinTime(limit: 0)
    none.slept(0)
    none.slept(1000)
    #expect(none.nanoseconds == 0)
  }
}
