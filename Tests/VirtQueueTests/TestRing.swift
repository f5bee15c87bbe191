// A device's ring of either format behind one name, and a queue made whole: memory, driver, ring. One thread.

import VirtQueue

/// `VirtRing` for tests that do not care which.
protocol TestRing: AnyObject {
  var size: UInt16 { get }
  var liveCount: Int { get }
  var fault: QueueFault? { get }
  var base: UInt32 { get }
  func next() -> Chain?
  func complete(_ chain: consuming Chain, written: Int)
  func take(_ head: UInt16) -> Chain?
  func untake(_ chain: consuming Chain)
  func publish() -> Notify
  func park() -> Bool
  func unpark()
  func move(to map: GuestMemoryMap) -> Bool
  func fail(_ fault: QueueFault)
}

final class RingBox<R: VirtRing & ~Copyable>: TestRing, CustomReflectable {
  /// A failed expectation looks into what it names, and cannot look into this.
  var customMirror: Mirror { Mirror(self, children: []) }
  private var ring: R
  init(_ ring: consuming R) { self.ring = ring }

  var size: UInt16 { ring.size }
  var liveCount: Int { ring.liveCount }
  var fault: QueueFault? { ring.fault }
  var base: UInt32 { ring.base }
  func next() -> Chain? { ring.next() }
  func complete(_ chain: consuming Chain, written: Int) { ring.complete(chain, written: UInt32(written)) }
  func take(_ head: UInt16) -> Chain? { ring.take(head) }
  func untake(_ chain: consuming Chain) { ring.untake(chain) }
  func publish() -> Notify { ring.publish() }
  func park() -> Bool { ring.park() }
  func unpark() { ring.unpark() }
  func move(to map: GuestMemoryMap) -> Bool { ring.move(to: map) }
  func fail(_ fault: QueueFault) { ring.fail(fault) }
}

func makeRing(_ format: Format, _ layout: RingLayout, _ map: GuestMemoryMap) throws -> any TestRing {
  switch format {
  case .split: RingBox(try SplitRing(layout, map: map))
  case .packed: RingBox(try PackedRing(layout, map: map))
  }
}

/// A whole queue.
struct Rig {
  let memory: TestMemory
  let driver: any TestDriver
  let ring: any TestRing

  init(
    _ format: Format, size: Int = 8, base: UInt32? = nil, indirect: Bool = true, eventIndex: Bool = true
  ) throws {
    memory = try Place.memory()
    driver = makeDriver(
      format, size: size, memory: memory, base: base, indirect: indirect, eventIndex: eventIndex)
    ring = try makeRing(format, driver.layout, memory.map)
  }
}

/// The same with a split driver's raw writers at hand.
struct SplitRig {
  let memory: TestMemory
  let driver: SplitDriver
  let ring: any TestRing

  init(size: Int = 8, base: UInt16 = 0, indirect: Bool = true, eventIndex: Bool = true) throws {
    memory = try Place.memory()
    driver = SplitDriver(memory: memory, size: size, base: base, indirect: indirect, eventIndex: eventIndex)
    ring = RingBox(try SplitRing(driver.layout, map: memory.map))
  }

  /// The fault that the next chain leads to; nil where it is a chain, or there is none.
  func faultOfNext() -> QueueFault? {
    if let chain = ring.next() { ring.complete(chain, written: 0) }
    return ring.fault
  }
}

/// The same with a packed driver's.
struct PackedRig {
  let memory: TestMemory
  let driver: PackedDriver
  let ring: any TestRing

  init(size: Int = 8, base: UInt32 = 0x8000_8000, indirect: Bool = true, eventIndex: Bool = true) throws {
    memory = try Place.memory()
    driver = PackedDriver(memory: memory, size: size, base: base, indirect: indirect, eventIndex: eventIndex)
    ring = RingBox(try PackedRing(driver.layout, map: memory.map))
  }

  func faultOfNext() -> QueueFault? {
    if let chain = ring.next() { ring.complete(chain, written: 0) }
    return ring.fault
  }
}

/// What the driver put where a chain's readable pieces are.
func expected(_ pieces: [Piece], writable: Bool = false) -> [UInt8] {
  pieces.filter { $0.writable == writable }.flatMap { TestMemory.pattern(at: $0.address, $0.length) }
}

extension TestRing {
  /// Takes, completes and publishes what is there; the heads.
  @discardableResult
  func serveAll(written: Int = 0) -> [UInt16] {
    var heads: [UInt16] = []
    while let chain = next() {
      heads.append(chain.head)
      complete(chain, written: written)
    }
    _ = publish()
    return heads
  }

  /// Takes a chain and holds it; its head, nil where there was none.
  func hold() -> UInt16? { next()?.hold() }
  /// Untakes the chain that is held under this head, which must be there.
  func untakeHeld(_ head: UInt16) {
    if let chain = take(head) { untake(chain) }
  }

  /// Completes what is held under a head. False where nothing is.
  @discardableResult
  func finish(_ head: UInt16, written: Int = 0) -> Bool {
    guard let chain = take(head) else { return false }
    complete(chain, written: written)
    return true
  }
}
