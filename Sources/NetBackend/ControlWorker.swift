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
    case (ControlClass.mac, 1, 6):
      guard let low = parts.load(UInt32.self, at: 2), let high = parts.load(UInt16.self, at: 6) else {
        return nil
      }
      return .setAddress(
        MACAddress(value: UInt64(UInt32(littleEndian: low)) | UInt64(UInt16(littleEndian: high)) << 32))
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
}

enum ControlClass {
  static let mac: UInt8 = 1
  static let announce: UInt8 = 3
  static let multiQueue: UInt8 = 4
  static let guestOffloads: UInt8 = 5
}

/// The commands that are served.
enum ControlCommand: Equatable {
  case setAddress(MACAddress)
  case announced
  case setPairs(UInt16)
  case setOffloads(FeatureSet)
}
