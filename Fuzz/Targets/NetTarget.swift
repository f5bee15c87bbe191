// A network card against frames, headers, receive buffers and control commands of every framing. Its frames come back by the
// loop, so both directions and what lies between them are played at once. Queues run on their own thread, as in the program.

import CLinux
import DeviceKit
import Glibc
import HostIO
import NetBackend
import Synchronization
import VirtQueue

enum NetTarget {
  static let target = FuzzTarget(
    name: "net",
    about: "the network card: headers and frames cut anywhere, receive buffers, control commands",
    longest: 512
  ) { input in
    var feed = Feed(input)
    guard let cards else { throw Defect("no card to play with") }
    try feed.pick(cards).play(&feed)
  }

  // SAFETY: targets run on one thread.
  private nonisolated(unsafe) static let cards: [FuzzCard]? = {
    func card(_ place: NetPlace, _ change: (inout NetDevice.Options) -> Void = { _ in }) -> FuzzCard? {
      var options = NetDevice.Options()
      change(&options)
      return try? FuzzCard(NetDevice(place: place, options: options))
    }
    let cards = [
      card(.loop), card(.loop) { $0.tag = NetworkTag(5) },
      card(.loop) {
        $0.mac = MACAddress("02:00:00:00:00:09")
        $0.tag = NetworkTag(4094)
      }, card(.source),
    ].compactMap { $0 }
    return cards.isEmpty ? nil : cards
  }()
}

/// One card, its thread, and the memory that its frames are in.
private final class FuzzCard {
  private static let size = 32
  /// The rings lie where no receive buffer reaches; a frame of their bytes may still be sent.
  private static let firstRing = 0x2000
  private static let ringBytes = 0x400
  private static let roles = ["receive", "transmit", "control"]

  private let memory: FuzzMemory
  private let device: NetDevice
  private let host: DeviceHost
  private let thread: QueueThread
  private let kicks: [Kick]

  init(_ device: NetDevice) throws {
    self.device = device
    memory = try FuzzMemory()
    kicks = try Self.roles.map { _ in Kick(try EventFD()) }
    thread = try QueueThread(
      name: "fuzz", cpus: [], policy: .interrupt, seats: DeviceHost.seats(for: device, threads: 1), files: 0)
    host = try DeviceHost(device: device, threads: [thread])
    _ = try thread.start()
  }

  private final class Flag: Sendable { let value = Atomic<Bool>(false) }
  private final class Kick {
    let event: EventFD
    init(_ event: consuming EventFD) { self.event = event }
  }

  /// What one ring was given.
  private struct Chains {
    var count: UInt16 = 0
    var nextDescriptor = 0
    /// Receive: bytes that may be written, by the order in which chains were given.
    var room: [UInt64] = []
  }

  func play(_ feed: inout Feed) throws {
    memory.clear()
    device.reset()
    let features = chooseFeatures(&feed)
    device.negotiated(features)
    var chains = [Chains](repeating: Chains(), count: 3)
    // Some are there before the queues start, some come meanwhile.
    let early = feed.below(24)
    for _ in 0..<early where !feed.isEmpty { add(&feed, &chains) }
    let before = host.counters.map { $0.value(.completed) }
    let broken = Self.roles.map { _ in Flag() }
    for index in 0..<3 { try start(index, features, broken[index]) }
    defer { _ = host.stop([0, 1, 2]) }
    while !feed.isEmpty {
      let index = add(&feed, &chains)
      kicks[index].event.signal()
    }
    let deadline = ContinuousClock.now + .seconds(10)
    for index in 1...2 {
      while host.counters[index].value(.completed) - before[index] < UInt64(chains[index].count),
        !broken[index].value.load(ordering: .acquiring)
      {
        if ContinuousClock.now > deadline {
          throw Defect("\(Self.roles[index]) chains that do not come back")
        }
        sched_yield()
      }
    }
    var config = ConfigWriter()
    device.readConfig(&config)
    guard host.stop([0, 1, 2]).count == 3 else { throw Defect("queues that do not stop") }
    if !broken[0].value.load(ordering: .acquiring) { try checkReceived(chains[0]) }
  }

  private func chooseFeatures(_ feed: inout Feed) -> FeatureSet {
    let choice = feed.u16()
    var features: FeatureSet = [NetFeature.controlQueue]
    let bits: [UInt8] = [32, 15, 0, 1, 7, 11, 12, 13, 14, 18, 19, 20, 23, 2, 21, 57]
    // Mostly a modern driver with everything.
    for (place, bit) in bits.enumerated() where choice >> UInt16(place) & 1 == (bit == 57 ? 1 : 0) {
      features.insert(FeatureSet(bit: bit))
    }
    return features
  }

  private func start(_ index: Int, _ features: FeatureSet, _ broken: Flag) throws {
    let user = memory.ringUser + UInt64(ring(index, 0))
    let failure = host.start(
      index,
      QueueSetup(
        layout: RingLayout(
          size: UInt16(Self.size), descriptorArea: user, driverArea: user + UInt64(16 * Self.size),
          deviceArea: user + UInt64(Self.used), base: 0, indirect: false, eventIndex: false),
        features: features, map: memory.map, enabled: true, kick: kicks[index].event.raw, call: nil,
        onFault: { _ in broken.value.store(true, ordering: .releasing) }))
    if let failure { throw Defect("the \(Self.roles[index]) queue does not start: \(failure)") }
  }

  private static let used = 16 * size + 4 + 2 * size + 4
  private func ring(_ index: Int, _ offset: Int) -> Int { Self.firstRing + Self.ringBytes * index + offset }

  /// Buffers come back in their order, with no more in them than there is room for.
  private func checkReceived(_ chains: Chains) throws {
    let used = memory.ring(ring(0, Self.used))
    let count = clx_load_acquire_u16(used + 2)
    guard count <= chains.count else { throw Defect("more buffers came back than were given") }
    for place in 0..<Int(count) {
      let length = clx_load_relaxed_u64(used + 4 + 8 * place) >> 32
      guard length <= chains.room[place] else {
        throw Defect("\(length) bytes in a buffer of \(chains.room[place])")
      }
    }
  }

  // MARK: Chains

  @discardableResult
  private func add(_ feed: inout Feed, _ chains: inout [Chains]) -> Int {
    let kind = feed.below(8)
    let index = kind < 3 ? 1 : kind < 6 ? 0 : 2
    switch index {
    case 0: post(receiveBuffer(&feed), &chains[0], 0)
    case 1: post(frame(&feed, slot: chains[1].count), &chains[1], 1)
    default: post(command(&feed, slot: chains[2].count), &chains[2], 2)
    }
    return index
  }

  private typealias Piece = (address: UInt64, length: UInt32, writable: Bool)

  private func post(_ pieces: [Piece], _ chains: inout Chains, _ index: Int) {
    let pieces = pieces.prefix(Self.size - chains.nextDescriptor)
    guard !pieces.isEmpty else { return }
    let head = chains.nextDescriptor
    for (i, piece) in pieces.enumerated() {
      let flags: UInt64 = (piece.writable ? 2 : 0) | (i == pieces.count - 1 ? 0 : 1)
      let place = memory.ring(ring(index, 16 * (head + i)))
      clx_store_relaxed_u64(place, piece.address)
      clx_store_relaxed_u64(place + 8, UInt64(piece.length) | flags << 32 | UInt64(head + i + 1) << 48)
    }
    chains.nextDescriptor += pieces.count
    chains.room.append(pieces.reduce(0) { $0 + ($1.writable ? UInt64($1.length) : 0) })
    let available = ring(index, 16 * Self.size)
    clx_store_relaxed_u16(memory.ring(available + 4 + 2 * Int(chains.count)), UInt16(head))
    chains.count += 1
    clx_store_release_u16(memory.ring(available + 2), chains.count)
  }

  private func receiveBuffer(_ feed: inout Feed) -> [Piece] {
    (0...feed.below(4)).map { _ in
      var address = FuzzMemory.address(&feed)
      if address >= FuzzMemory.ring, address < FuzzMemory.ring + UInt64(FuzzMemory.ringBytes) {
        address = FuzzMemory.border
      }
      return (address, feed.pick([2048, 12, 10, 24, FuzzMemory.length(&feed), 1, 0]), feed.u8() & 15 != 15)
    }
  }

  /// Header and frame between honest and wild, cut anywhere.
  private func frame(_ feed: inout Feed, slot: UInt16) -> [Piece] {
    var bytes: [UInt8] = [feed.pick([0, 1, 1, 2, 0xff]), feed.pick([0, 0, 1, 3, 4, 5, 0x81, feed.u8()])]
    for _ in 0..<4 {
      let word: UInt16 = feed.pick([0, 34, 14, 18, 54, 16, 6, 1448, 0xffff, 0xfffc, feed.u16()])
      bytes += [UInt8(truncatingIfNeeded: word), UInt8(word >> 8)]
    }
    bytes += [UInt8](repeating: 0, count: feed.pick([2, 0, 10]))
    bytes += feed.pick([
      [0xff, 0xff, 0xff, 0xff, 0xff, 0xff], [2, 0, 0, 0, 0, 9], [1, 0, 0x5e, 0, 0, 1], feed.take(6),
    ])
    bytes += feed.pick([[2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 8]])
    bytes += feed.pick([[8, 0], [0x81, 0, 0, 0, 8, 0], [0x81, 0, 0xe0, 5, 0x81, 0], [0x88, 0xa8], []])
    bytes += [UInt8](repeating: 0x5a, count: feed.pick([46, 0, 1, 4, 200]))
    bytes = Array(bytes.prefix(feed.pick([.max, .max, feed.below(40)])))
    return cut(bytes, slot, &feed)
  }

  private func command(_ feed: inout Feed, slot: UInt16) -> [Piece] {
    var bytes: [UInt8] = [
      feed.below(8) < 7 ? UInt8(feed.below(6)) : feed.u8(), feed.pick([0, 1, 2, 5, feed.u8()]),
    ]
    switch feed.below(4) {
    case 0: bytes += feed.take(feed.below(12))
    case 1: bytes += [feed.u8()]
    case 2: bytes += feed.take(6)
    default:
      for _ in 0..<2 {
        let count = feed.below(4)
        let claimed: UInt32 = feed.pick([UInt32(count), UInt32(count), 0, 65, 0x2aaa_aaab, 0xffff_ffff])
        bytes += (0..<4).map { UInt8(truncatingIfNeeded: claimed >> (8 * UInt32($0))) }
        for _ in 0..<count { bytes += [UInt8](feed.take(1)) + [0, 0, 0, 0, 9] }
      }
    }
    var pieces = cut(bytes, 32 + slot, &feed)
    let answer = FuzzMemory.dataEnd - 64 + UInt64(slot)
    if feed.u8() & 7 != 7 { pieces.append((answer, feed.pick([1, 1, 0, 8]), true)) }
    return pieces
  }

  /// Bytes in up to three pieces of the lower data region, and now and then one more of any kind.
  private func cut(_ bytes: [UInt8], _ slot: UInt16, _ feed: inout Feed) -> [Piece] {
    let place = 256 * Int(slot % 32) % 0x2000
    let bytes = bytes.prefix(0x2000 - place)
    for (i, byte) in bytes.enumerated() {
      memory.regions[2].host.storeBytes(of: byte, toByteOffset: place + i, as: UInt8.self)
    }
    let start = FuzzMemory.data + UInt64(place)
    var pieces: [Piece] = []
    var done = 0
    for _ in 0..<2 where feed.flag() {
      let length = min(feed.below(32), bytes.count - done)
      pieces.append((start + UInt64(done), UInt32(length), false))
      done += length
    }
    pieces.append((start + UInt64(done), UInt32(bytes.count - done), false))
    if feed.u8() & 7 == 7 {
      pieces.append((FuzzMemory.address(&feed), FuzzMemory.length(&feed), feed.u8() & 3 == 3))
    }
    return pieces
  }
}
