// What a session knows of one ring between its messages. On the control thread.

import HostIO
import VirtQueue

/// The ring addresses of SET_VRING_ADDR, in the front-end's address space, and what is to be logged of it.
struct VringAddresses {
  var descriptor: UInt64
  var used: UInt64
  var available: UInt64
  /// VHOST_VRING_F_LOG, and the used area's address in the log.
  var isLogged: Bool
  var logAddress: UInt64

  /// {u32 index, u32 flags, u64 descriptor, u64 used, u64 available, u64 log}; the index was read before.
  init(_ reader: inout PayloadReader) {
    isLogged = reader.u32() & 1 != 0
    descriptor = reader.u64()
    used = reader.u64()
    available = reader.u64()
    logAddress = reader.u64()
  }

  /// Whether both name the same ring.
  func namesRing(of other: VringAddresses?) -> Bool {
    other.map { $0.descriptor == descriptor && $0.used == used && $0.available == available } ?? false
  }
}

/// One ring's set-up. Started and enabled are independent (vhost-user, "Ring states").
final class Vring {
  var size: UInt16 = 0
  var addresses: VringAddresses?
  var base: UInt32 = 0
  var enabled = false
  private(set) var started = false
  /// To be started when its areas are translated (IOMMU).
  var awaits = false
  /// Nil until SET_VRING_KICK, or where the ring is to be polled.
  private(set) var kick: OwnedFD?
  private(set) var call: OwnedFD?
  private(set) var error: OwnedFD?

  func setKick(_ descriptor: consuming OwnedFD?) { kick = descriptor }
  func setCall(_ descriptor: consuming OwnedFD?) { call = descriptor }
  func setError(_ descriptor: consuming OwnedFD?) { error = descriptor }
  var kickRaw: Int32? { kick?.raw }
  var callRaw: Int32? { call?.raw }
  var errorRaw: Int32? { error?.raw }

  func markStarted() { started = true }

  /// The ring is stopped at `base`; its kick descriptor is let go.
  func markStopped(at base: UInt32?) {
    started = false
    kick = nil
    if let base { self.base = base }
  }

  /// Back to the state before the first message.
  func reset() {
    size = 0
    addresses = nil
    base = 0
    enabled = false
    awaits = false
    kick = nil
    call = nil
    error = nil
  }
}
