// virtio-net's control queue (virtio 1.3 §5.1.6.5), for front-ends that pass it on. On its queue's thread; what a command
// changes is the device's, under its lock.

import DeviceKit
import VirtQueue

struct ControlWorker: QueueWorker {
  private let device: NetDevice

  init(device: NetDevice) { self.device = device }

  mutating func service<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    while let chain = q.next() { answer(chain, &q) }
  }

  /// {u8 class, u8 command, data}, and one byte for the answer: 0 or 1.
  private func answer<R: VirtRing & ~Copyable>(_ chain: consuming Chain, _ q: inout QueueIO<R>) {
    guard chain.writable.byteCount > 0, !chain.hasHole else {
      q.count(.malformed)
      q.complete(chain, written: 0)
      return
    }
    let isDone = Self.command(in: chain).map(device.execute) ?? false
    q.count(.commands)
    if !isDone { q.count(.refusedCommands) }
    let written: UInt32 = chain.writable.store(isDone ? 0 : 1, at: 0) ? 1 : 0
    q.complete(chain, written: written)
  }

  /// Nil for one that is too short or longer than any that is known.
  private static func command(in chain: borrowing Chain) -> ControlCommand? {
    let parts = chain.readable
    guard let kind = parts.load(UInt8.self, at: 0), let number = parts.load(UInt8.self, at: 1) else {
      return nil
    }
    let length = Int(parts.byteCount) - 2
    switch (kind, number, length) {
    case (ControlClass.receive, _, 1):
      guard let name = ReceiveFilter.Switch(rawValue: number) else { return nil }
      return parts.load(UInt8.self, at: 2).map { .setSwitch(name, $0 != 0) }
    case (ControlClass.mac, 0, _): return tables(in: chain, length)
    case (ControlClass.mac, 1, 6): return address(in: chain, at: 2).map { .setAddress($0) }
    case (ControlClass.vlan, 0...1, 2):
      return parts.load(UInt16.self, at: 2).map { .setNetwork(UInt16(littleEndian: $0), wanted: number == 0) }
    case (ControlClass.announce, 0, 0): return .announced
    case (ControlClass.multiQueue, 0, 2):
      return parts.load(UInt16.self, at: 2).map { .setPairs(UInt16(littleEndian: $0)) }
    case (ControlClass.guestOffloads, 0, 8):
      return parts.load(UInt64.self, at: 2).map {
        .setOffloads(FeatureSet(rawValue: UInt64(littleEndian: $0)))
      }
    default: return nil
    }
  }

  private static func address(in chain: borrowing Chain, at offset: Int) -> MACAddress? {
    let parts = chain.readable
    guard let low = parts.load(UInt32.self, at: offset), let high = parts.load(UInt16.self, at: offset + 4)
    else { return nil }
    return MACAddress(value: UInt64(UInt32(littleEndian: low)) | UInt64(UInt16(littleEndian: high)) << 32)
  }

  /// {le32 entries, entries of six bytes} of single cards, then the same of groups; nothing less and nothing more.
  private static func tables(in chain: borrowing Chain, _ length: Int) -> ControlCommand? {
    guard length <= longestTables, let first = table(in: chain, at: 2),
      let second = table(in: chain, at: 2 + first.byteCount),
      first.byteCount + second.byteCount == length
    else { return nil }
    return .setTables(unicast: first.table, multicast: second.table)
  }

  /// More than ten thousand addresses: what a driver with more may say by a switch.
  private static var longestTables: Int { 1 << 16 }

  private static func table(
    in chain: borrowing Chain, at offset: Int
  ) -> (table: ReceiveFilter.Table, byteCount: Int)? {
    guard let raw = chain.readable.load(UInt32.self, at: offset) else { return nil }
    let count = Int(UInt32(littleEndian: raw))
    guard offset + 4 + 6 * count <= Int(chain.readable.byteCount) else { return nil }
    // One more than a table holds is as good as all: it wants everything then.
    var addresses: [UInt64] = []
    for i in 0..<min(count, ReceiveFilter.tableSize + 1) {
      guard let mac = address(in: chain, at: offset + 4 + 6 * i) else { return nil }
      addresses.append(mac.value)
    }
    return (ReceiveFilter.Table(addresses), 4 + 6 * count)
  }
}

enum ControlClass {
  static let receive: UInt8 = 0
  static let mac: UInt8 = 1
  static let vlan: UInt8 = 2
  static let announce: UInt8 = 3
  static let multiQueue: UInt8 = 4
  static let guestOffloads: UInt8 = 5
}

/// The commands that are served.
enum ControlCommand: Equatable {
  case setSwitch(ReceiveFilter.Switch, Bool)
  case setTables(unicast: ReceiveFilter.Table, multicast: ReceiveFilter.Table)
  case setNetwork(UInt16, wanted: Bool)
  case setAddress(MACAddress)
  case announced
  case setPairs(UInt16)
  case setOffloads(FeatureSet)
}
