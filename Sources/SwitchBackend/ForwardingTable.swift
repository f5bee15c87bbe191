// Which address is behind which port: learned from the sources of frames, forgotten with time, of a fixed size. On the
// switch's queue thread.
//
// One port cannot push out what others have taught: an entry gives way only when it has aged or is the newcomer's own, and
// no port has more than its share. Otherwise a guest that invents addresses would have everybody's frames flooded to it.

/// Addresses by network, in sets of eight.
@safe struct ForwardingTable: ~Copyable {
  private struct Entry {
    /// Address and network; 0: free. No source address is 0 (the group bit apart, any other value is one).
    var key: UInt64 = 0
    var heard: UInt32 = 0
    var port: UInt16 = 0
    /// Set by the operator: neither learned nor forgotten.
    var isFixed = false
  }

  private static let ways = 8
  private let setCount: Int
  private let ageing: UInt32
  private let portCount: Int
  // SAFETY: `setCount * ways` entries, and two numbers a port; indices are masked, or ports, which the switch counts.
  private let entries: UnsafeMutablePointer<Entry>
  private let shares: UnsafeMutablePointer<Int>
  private let owned: UnsafeMutablePointer<Int>

  /// What learning an address came to.
  enum Learned { case known, new, moved, refused }

  /// How many addresses each port may have, at least one; there is room for all of them.
  init(shares: [Int], ageing: UInt32) {
    var sets = 1
    while sets * Self.ways < shares.reduce(0, +) { sets *= 2 }
    setCount = sets
    self.ageing = ageing
    portCount = shares.count
    unsafe entries = .allocate(capacity: sets * Self.ways)
    unsafe entries.initialize(repeating: Entry(), count: sets * Self.ways)
    unsafe self.shares = .allocate(capacity: portCount)
    unsafe owned = .allocate(capacity: portCount)
    unsafe owned.initialize(repeating: 0, count: portCount)
    // SAFETY: in bounds.
    for (port, share) in shares.enumerated() { unsafe (self.shares + port).initialize(to: share) }
  }

  deinit {
    unsafe entries.deallocate()
    unsafe shares.deallocate()
    unsafe owned.deallocate()
  }

  @inline(__always)
  private static func key(_ address: UInt64, _ network: UInt16) -> UInt64 { address | UInt64(network) << 48 }

  @inline(__always)
  private func set(of key: UInt64) -> UnsafeMutablePointer<Entry> {
    let hash = key &* 0x9e37_79b9_7f4a_7c15
    // SAFETY: masked to a set, `ways` entries each.
    return unsafe entries + (Int(truncatingIfNeeded: hash >> 40) & (setCount - 1)) * Self.ways
  }

  @inline(__always)
  private func isLive(_ entry: Entry, _ now: UInt32) -> Bool {
    entry.key != 0 && (entry.isFixed || now &- entry.heard <= ageing)
  }

  /// The port an address was heard from; nil: nobody knows, or not lately. `now`: seconds.
  @inline(__always)
  func port(of address: UInt64, network: UInt16, now: UInt32) -> UInt16? {
    let key = Self.key(address, network)
    let set = unsafe set(of: key)
    for way in 0..<Self.ways {
      // SAFETY: way < ways.
      let entry = unsafe set[way]
      if entry.key == key { return isLive(entry, now) ? entry.port : nil }
    }
    return nil
  }

  /// Notes that an address was heard from a port.
  @inline(__always)
  func learn(_ address: UInt64, network: UInt16, port: UInt16, now: UInt32) -> Learned {
    let key = Self.key(address, network)
    let set = unsafe set(of: key)
    for way in 0..<Self.ways {
      // SAFETY: way < ways.
      if unsafe set[way].key == key, unsafe set[way].port == port {
        unsafe set[way].heard = now
        return .known
      }
    }
    return unsafe enter(key, in: set, port: port, now: now)
  }

  /// A new address, or one that was somewhere else.
  @inline(never)
  private func enter(
    _ key: UInt64, in set: UnsafeMutablePointer<Entry>, port: UInt16, now: UInt32
  ) -> Learned {
    var known: Int?
    var free: Int?
    var own: (way: Int, heard: UInt32)?
    for way in 0..<Self.ways {
      // SAFETY (all of the body): way < ways; ports are below `portCount`.
      let entry = unsafe set[way]
      if entry.key == key { known = way }
      if !isLive(entry, now), free == nil { free = way }
      if entry.port == port, !entry.isFixed, entry.key != 0, entry.heard <= own?.heard ?? .max {
        own = (way, entry.heard)
      }
    }
    if let known {
      if unsafe set[known].isFixed { return .refused }
      let isMove = unsafe isLive(set[known], now)
      unsafe put(key, in: set, at: known, port: port, now: now, isFixed: false)
      return isMove ? .moved : .new
    }
    let isFull = unsafe owned[Int(port)] >= shares[Int(port)]
    guard let way = isFull ? own?.way : free ?? own?.way else { return .refused }
    unsafe put(key, in: set, at: way, port: port, now: now, isFixed: false)
    return .new
  }

  private func put(
    _ key: UInt64, in set: UnsafeMutablePointer<Entry>, at way: Int, port: UInt16, now: UInt32, isFixed: Bool
  ) {
    // SAFETY: as in `enter`.
    if unsafe set[way].key != 0 { unsafe owned[Int(set[way].port)] -= 1 }
    unsafe set[way] = Entry(key: key, heard: now, port: port, isFixed: isFixed)
    unsafe owned[Int(port)] += 1
  }

  /// An address that is behind a port by the operator's word. False where its set is full of such.
  func fix(_ address: UInt64, network: UInt16, port: UInt16) -> Bool {
    let key = Self.key(address, network)
    let set = unsafe set(of: key)
    // SAFETY: way < ways.
    guard let way = (0..<Self.ways).first(where: { unsafe !set[$0].isFixed }) else { return false }
    unsafe put(key, in: set, at: way, port: port, now: 0, isFixed: true)
    return true
  }

  /// Forgets what a port has taught: its guest is gone.
  func forget(port: UInt16) {
    for index in 0..<setCount * Self.ways {
      // SAFETY: in bounds.
      guard unsafe entries[index].key != 0, unsafe entries[index].port == port, unsafe !entries[index].isFixed
      else { continue }
      unsafe entries[index] = Entry()
      unsafe owned[Int(port)] -= 1
    }
  }

  /// How many addresses a port has taught and not lost to others.
  func count(port: UInt16) -> Int { unsafe Int(port) < portCount ? owned[Int(port)] : 0 }
}
