// What a driver wants to be given: mode, addresses and networks that it set by its control queue (virtio 1.3 §5.1.6.5.1 to
// §5.1.6.5.3). The control side writes it, receive queues look; its size does not depend on what a driver asks.

import Synchronization

/// The first 16 bytes of a frame: what a filter looks at.
struct FrameBeginning: Sendable, Equatable {
  /// The first byte lowest; zeros where the frame ends.
  let low: UInt64
  let high: UInt64
  let byteCount: Int

  var destination: UInt64 { UInt64(littleEndian: low) & 0xffff_ffff_ffff }

  /// The number in the frame's tag; nil: it has none.
  var network: UInt16? {
    let rest = UInt64(littleEndian: high)
    guard byteCount >= 18, rest >> 32 & 0xffff == 0x0081 else { return nil }
    return UInt16(truncatingIfNeeded: rest >> 48).byteSwapped & 0xfff
  }
}

/// A driver's wishes. One that has said nothing gets everything.
struct ReceiveFilter: Sendable, Equatable {
  /// Entries of a table of addresses; a driver that wants more gets all of the kind.
  static let tableSize = 64

  /// The addresses of one kind, groups or single cards.
  struct Table: Sendable, Equatable {
    private(set) var addresses: [UInt64] = []
    private(set) var hasOverflowed = false

    init() {}

    init(_ addresses: [UInt64]) {
      hasOverflowed = addresses.count > ReceiveFilter.tableSize
      if !hasOverflowed { self.addresses = addresses }
    }

    /// What a table of another card was: {u8 more than it holds were wanted, 6 bytes each}; nil for what none can have been.
    init?(bytes: [UInt8]) {
      guard let first = bytes.first, first <= 1, bytes.count % 6 == 1 else { return nil }
      let count = bytes.count / 6
      guard count <= (first == 1 ? 0 : ReceiveFilter.tableSize) else { return nil }
      hasOverflowed = first == 1
      addresses = (0..<count).map { index in
        bytes[(1 + 6 * index)..<(7 + 6 * index)].reversed().reduce(0) { $0 << 8 | UInt64($1) }
      }
    }

    var bytes: [UInt8] {
      [hasOverflowed ? 1 : 0]
        + addresses.flatMap { address in
          (0..<6).map { UInt8(truncatingIfNeeded: address >> (8 * UInt64($0))) }
        }
    }

    func contains(_ address: UInt64) -> Bool { hasOverflowed || addresses.contains(address) }
  }

  /// The six switches of class VIRTIO_NET_CTRL_RX, by their commands' numbers.
  enum Switch: UInt8, Sendable {
    case promiscuous, allMulticast, allUnicast, noMulticast, noUnicast, noBroadcast
  }

  private(set) var switches: UInt8 = 1
  /// The card's own address; 0: unknown, and every card's is taken for it.
  var address: UInt64 = 0
  var unicast = Table()
  var multicast = Table()
  /// A bit a network; nil: frames with any tag are wanted.
  private(set) var networks: [UInt64]?

  /// `limitsNetworks`: VIRTIO_NET_F_CTRL_VLAN was negotiated, so frames with a tag are wanted when asked for.
  init(limitsNetworks: Bool = false) { if limitsNetworks { networks = [UInt64](repeating: 0, count: 64) } }

  /// Goes on as another card's filter was, in modes and networks. False, and nothing changed, for modes that are none, or too
  /// few networks.
  mutating func take(switches: UInt8, networks other: [UInt64]?) -> Bool {
    guard switches < 1 << 6, other?.count ?? 64 == 64 else { return false }
    self.switches = switches
    if networks != nil, let other { networks = other }
    return true
  }

  /// Everything is wanted.
  var isOpen: Bool { isOn(.promiscuous) }

  func isOn(_ name: Switch) -> Bool { switches >> name.rawValue & 1 == 1 }
  mutating func set(_ name: Switch, _ on: Bool) {
    switches = switches & ~(1 << name.rawValue) | (on ? 1 << name.rawValue : 0)
  }

  /// `network` is below 4096.
  mutating func setNetwork(_ network: UInt16, wanted: Bool) {
    let bit: UInt64 = 1 << UInt64(network & 63)
    let word = Int(network >> 6) & 63
    if wanted { networks?[word] |= bit } else { networks?[word] &= ~bit }
  }

  func admits(_ frame: FrameBeginning) -> Bool {
    if isOpen { return true }
    if let networks, let network = frame.network,
      networks[Int(network >> 6) & 63] >> UInt64(network & 63) & 1 == 0
    {
      return false
    }
    let destination = frame.destination
    if destination == 0xffff_ffff_ffff { return !isOn(.noBroadcast) }
    if destination & 1 == 1 {
      return !isOn(.noMulticast) && (isOn(.allMulticast) || multicast.contains(destination))
    }
    if isOn(.noUnicast) { return false }
    return isOn(.allUnicast) || address == 0 || destination == address || unicast.contains(destination)
  }
}

/// Where the control side leaves a filter, and receive queues find it.
final class FilterBoard: Sendable {
  private let count = Atomic<UInt64>(0)
  private let filter = Mutex(ReceiveFilter())

  /// Another one each time that the filter has changed.
  var number: UInt64 { count.load(ordering: .acquiring) }

  func set(_ new: ReceiveFilter) {
    filter.withLock { $0 = new }
    count.add(1, ordering: .releasing)
  }

  /// Copies the filter; the number under which it is known.
  func read(_ copy: inout ReceiveFilter) -> UInt64 {
    let number = number
    copy = filter.withLock { $0 }
    return number
  }
}
