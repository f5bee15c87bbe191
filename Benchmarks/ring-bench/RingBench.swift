// What the device side of a ring costs: a request of three descriptors, taken, looked at and given back, in batches of 32, with
// no device and no wire. `ring-bench [--json] [--only KIND] [--runs N] [ROUNDS]`; time is taken around the device's part only, which is
// `devicePart`, so that callgrind can count it by name (`valgrind --tool=callgrind --toggle-collect='*devicePart*'`).

import Glibc
import VhostFrontend
import VirtQueue

@main
struct RingBench {
  struct Figure {
    var name: String
    /// Nanoseconds a request, of each run.
    var runs: [Double]
    var sorted: [Double] { runs.sorted() }
    var median: Double { sorted[runs.count / 2] }
  }

  static let batch = 32
  static func main() throws {
    var arguments = CommandLine.arguments.dropFirst()
    var (json, only, runs, rounds) = (false, String?.none, 7, 20_000)
    while let word = arguments.popFirst() {
      switch word {
      case "--json": json = true
      case "--only": only = arguments.popFirst()
      case "--runs": runs = arguments.popFirst().flatMap { Int($0) } ?? runs
      default: rounds = Int(word) ?? rounds
      }
    }
    var figures: [Figure] = []
    for packed in [false, true] {
      for indirect in [false, true] {
        for eventIndex in [false, true] {
          let name =
            "\(packed ? "packed" : "split")\(indirect ? ", indirect" : "")\(eventIndex ? ", event index" : "")"
          guard only == nil || only == name else { continue }
          var figure = Figure(name: name, runs: [])
          for _ in 0..<max(1, runs) {
            figure.runs.append(
              try measure(packed: packed, indirect: indirect, eventIndex: eventIndex, rounds: max(1, rounds)))
          }
          figures.append(figure)
        }
      }
    }
    if json {
      let parts = figures.map { "{\"name\":\"\($0.name)\",\"runs\":\($0.runs)}" }
      write("[" + parts.joined(separator: ",") + "]\n")
      return
    }
    write("ring, device side, ns a request of 3 descriptors (median of \(runs) runs, batch \(batch))\n")
    for figure in figures {
      let name = figure.name + String(repeating: " ", count: max(0, 34 - figure.name.count))
      write(
        "  \(name) \(round(figure.median))   (\(round(figure.sorted[0])) to \(round(figure.sorted[figure.runs.count - 1])))\n"
      )
    }
  }

  private static func round(_ value: Double) -> Double { (value * 10).rounded() / 10 }

  private static func write(_ text: String) {
    // SAFETY: writes from the string's own storage.
    unsafe text.withCString { unsafe _ = Glibc.write(STDOUT_FILENO, $0, strlen($0)) }
  }

  /// One run of one kind of ring: nanoseconds a request.
  private static func measure(packed: Bool, indirect: Bool, eventIndex: Bool, rounds: Int) throws -> Double {
    let bench = try Bench(packed: packed, indirect: indirect, eventIndex: eventIndex)
    let nanoseconds =
      packed
      ? bench.run(try PackedRing(bench.layout, map: bench.map), rounds: rounds)
      : bench.run(try SplitRing(bench.layout, map: bench.map), rounds: rounds)
    return nanoseconds / Double(rounds * batch)
  }
}

/// A driver and the memory it shares.
final class Bench {
  let arena: GuestArena
  let driver: AnyDriverRing
  let map: GuestMemoryMap
  let layout: RingLayout
  private let chain: [DescriptorSpec]
  private let table: DescriptorTable

  init(packed: Bool, indirect: Bool, eventIndex: Bool) throws {
    let arena = try GuestArena(bytes: 4 << 20)
    self.arena = arena
    driver = try AnyDriverRing(
      DriverRingOptions(size: 128, eventIndex: eventIndex, indirectCapacity: indirect ? 4 : 0),
      packed: packed,
      in: arena)
    let regions = try arena.table.map { region in
      // SAFETY: the arena, which outlives the map, keeps the region mapped.
      unsafe GuestRegion(
        guestAddress: region.guestAddress, size: region.size, userAddress: region.userAddress,
        host: try arena.pointer(to: region.guestAddress, bytes: 1), owner: Keeper())
    }
    map = try GuestMemoryMap(generation: 1, regions: regions)
    layout = RingLayout(
      size: 128, descriptorArea: arena.userAddress(of: driver.areas.descriptors),
      driverArea: arena.userAddress(of: driver.areas.driver),
      deviceArea: arena.userAddress(of: driver.areas.device), base: driver.base, indirect: indirect,
      eventIndex: eventIndex)
    let data = try arena.allocate(8192, alignment: 4096)
    chain = [
      DescriptorSpec(data, 16), DescriptorSpec(data + 4096, 4096, write: true),
      DescriptorSpec(data + 64, 1, write: true),
    ]
    table = indirect ? .indirect : .direct
  }

  private final class Keeper: Sendable {}

  /// Nanoseconds that the device's part took, over all rounds.
  func run<R: VirtRing & ~Copyable>(_ ring: consuming R, rounds: Int) -> Double {
    var ring = ring
    var total: UInt64 = 0
    for _ in 0..<rounds {
      for _ in 0..<RingBench.batch { _ = driver.add(chain, table: table) }
      driver.publish()
      let start = Self.now()
      devicePart(&ring)
      total &+= Self.now() &- start
      while driver.poll() != nil {}
    }
    return Double(total)
  }

  /// What is measured: takes a batch, looks at each chain, gives it back, publishes once.
  @inline(never)
  private func devicePart<R: VirtRing & ~Copyable>(_ ring: inout R) {
    while let chain = ring.next() {
      let bytes = Self.bytes(of: chain)
      ring.complete(chain, written: bytes)
    }
    _ = ring.publish()
  }

  private static func bytes(of chain: borrowing Chain) -> UInt32 {
    chain.readable.byteCount &+ chain.writable.byteCount
  }

  private static func now() -> UInt64 {
    var time = timespec()
    // SAFETY: fills the local value.
    unsafe clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
  }
}
