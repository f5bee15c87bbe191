// The driver's side of a queue as the tests write it: straight into memory, with its own arithmetic, so that it shares
// nothing with what is tested. One thread beside the device's.

import CLinux
import VirtQueue

/// The two formats, for tests that hold for both.
enum Format: String, CaseIterable, Sendable {
  case split, packed
}

/// One buffer of a chain, in guest addresses.
struct Piece: Equatable, Sendable {
  var address: UInt64
  var length: Int
  var writable: Bool

  static func read(_ address: UInt64, _ length: Int) -> Piece {
    Piece(address: address, length: length, writable: false)
  }
  static func write(_ address: UInt64, _ length: Int) -> Piece {
    Piece(address: address, length: length, writable: true)
  }
}

/// Where a chain's descriptors go.
enum Shape: Equatable, Sendable {
  case direct
  case indirect
  /// So many in the ring, the others in a table that ends the chain (split only).
  case mixed(direct: Int)

  /// Descriptors of the ring that a chain of so many pieces takes.
  func ringDescriptors(_ pieces: Int) -> Int {
    switch self {
    case .direct: pieces
    case .indirect: 1
    case .mixed(let direct): direct + 1
    }
  }
}

/// When the driver wants to be told of used chains. Positions count from the ring's start and never wrap: used elements
/// of a split ring, descriptors of a packed one.
enum Wish: Equatable, Sendable {
  case always
  case never
  case passing(Int)
}

/// Descriptor flags (virtio 1.3 §2.7.5, §2.8.1), written down again.
enum Bits {
  static let next: UInt16 = 1
  static let write: UInt16 = 2
  static let indirect: UInt16 = 4
  static let available: UInt16 = 0x80
  static let used: UInt16 = 0x8000
}

/// What both drivers do.
protocol TestDriver: AnyObject {
  var memory: TestMemory { get }
  var size: Int { get }
  var layout: RingLayout { get }
  /// Makes a chain available at once. Returns the name it comes back under; nil where there is no room.
  func add(_ pieces: [Piece], _ shape: Shape) -> UInt16?
  /// The next used chain.
  func collect() -> (token: UInt16, length: Int)?
  /// Whether `collect` would give one.
  var hasUsed: Bool { get }
  /// What has been collected, as a position.
  var collected: Int { get }
  /// Tells the device when to call.
  func ask(_ wish: Wish)
  /// Whether the device wants a kick for what was added since the last question.
  func kickWanted() -> Bool
}

extension TestDriver {
  /// Entries of the indirect table that each token has for itself.
  static var tableEntries: Int { 64 }
  func table(of token: UInt16) -> UInt64 { Place.tables + UInt64(Int(token) * 16 * Self.tableEntries) }

  func store16(_ value: UInt16, at guest: UInt64) { clx_store_release_u16(memory.host(guest), value) }
  func load16(_ guest: UInt64) -> UInt16 { clx_load_acquire_u16(memory.host(guest)) }
}

/// A driver of either format, with the ring at `Place.ring`.
func makeDriver(
  _ format: Format, size: Int, memory: TestMemory, base: UInt32? = nil, indirect: Bool = true,
  eventIndex: Bool = true
) -> any TestDriver {
  switch format {
  case .split:
    SplitDriver(
      memory: memory, size: size, base: UInt16(base ?? 0), indirect: indirect, eventIndex: eventIndex)
  case .packed:
    PackedDriver(
      memory: memory, size: size, base: base ?? 0x8000_8000, indirect: indirect, eventIndex: eventIndex)
  }
}
