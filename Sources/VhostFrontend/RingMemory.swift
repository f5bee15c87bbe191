// The memory of one driver's ring: its three areas and indirect tables in the arena, and two private arrays
// for what the driver must remember. Made and held by the rings; one thread.

@safe final class RingMemory {
  let areas: RingAreas
  let tables: UInt64
  // SAFETY: each lies in one region of `arena`, which is held, at the length that was asked for.
  let descriptors: UnsafeMutableRawPointer
  let driver: UnsafeMutableRawPointer
  let device: UnsafeMutableRawPointer
  let tableMemory: UnsafeMutableRawPointer?
  // SAFETY: `count` initialised elements each, freed once in deinit.
  let first: UnsafeMutablePointer<UInt16>
  let second: UnsafeMutablePointer<UInt16>
  private let arena: GuestArena

  /// Bytes and alignment of an area.
  typealias Shape = (bytes: Int, alignment: Int)

  init(
    _ options: DriverRingOptions, in arena: GuestArena, driver driverShape: Shape, device deviceShape: Shape
  ) throws(FrontendError) {
    let count = Int(options.size)
    let areas = RingAreas(
      descriptors: try arena.allocate(16 * count, alignment: 16, region: options.region),
      driver: try arena.allocate(driverShape.bytes, alignment: driverShape.alignment, region: options.region),
      device: try arena.allocate(deviceShape.bytes, alignment: deviceShape.alignment, region: options.region))
    let tableBytes = 16 * max(0, options.indirectCapacity) * count
    let tables = try arena.allocate(tableBytes, alignment: 16, region: options.region)
    unsafe descriptors = try arena.pointer(to: areas.descriptors, bytes: 16 * count)
    unsafe driver = try arena.pointer(to: areas.driver, bytes: driverShape.bytes)
    unsafe device = try arena.pointer(to: areas.device, bytes: deviceShape.bytes)
    unsafe tableMemory = tableBytes > 0 ? try arena.pointer(to: tables, bytes: tableBytes) : nil
    self.areas = areas
    self.tables = tables
    self.arena = arena
    unsafe first = UnsafeMutablePointer<UInt16>.allocate(capacity: count)
    unsafe second = UnsafeMutablePointer<UInt16>.allocate(capacity: count)
    unsafe first.initialize(repeating: 0, count: count)
    unsafe second.initialize(repeating: 0, count: count)
  }

  deinit {
    unsafe first.deallocate()
    unsafe second.deallocate()
  }
}
