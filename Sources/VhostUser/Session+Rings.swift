// Ring messages: set-up, start, stop. On the control thread; what concerns a running ring is done by its queue thread
// before the handler returns.

import DeviceKit
import HostIO
import VirtQueue

extension Session {
  /// Runs `body` for the ring that a message names by all 32 bits of its index.
  func onRing(_ index: UInt32, _ body: (Vring) -> Handling) -> Handling {
    guard index < UInt32(rings.count) else { return .refused("ring \(index) of \(rings.count)") }
    return body(rings[Int(index)])
  }

  /// The same for a descriptor message: index in bits 0 to 7, NOFD in bit 8, nothing above.
  func onMarkedRing(_ value: UInt64, _ body: (Int, Vring) -> Handling) -> Handling {
    guard value >> 9 == 0, value & 0xff < UInt64(rings.count) else {
      return .refused("ring 0x\(String(value, radix: 16)) of \(rings.count)")
    }
    return body(Int(value & 0xff), rings[Int(value & 0xff)])
  }

  var isPacked: Bool { acknowledged.contains(.packedRing) }

  func setSize(_ ring: Vring, _ size: UInt32) -> Handling {
    guard !ring.started, !ring.awaits else { return .refused("a ring's size while it runs") }
    // Which format it is may not be known yet: a power of two is asked for at the start.
    guard size > 0, size <= UInt32(RingLayout.largestSize) else {
      return .refused("a ring of \(size) descriptors")
    }
    ring.size = UInt16(size)
    return .done
  }

  func setBase(_ ring: Vring, _ base: UInt32) -> Handling {
    guard !ring.started, !ring.awaits else { return .refused("a ring's base while it runs") }
    ring.base = base
    return .done
  }

  func setAddresses(_ ring: Vring, _ addresses: VringAddresses) -> Handling {
    if ring.started || ring.awaits {
      // Sent to a running ring only to change its logging.
      guard addresses.namesRing(of: ring.addresses) else {
        return .refused("other addresses for a ring that runs")
      }
      ring.addresses = addresses
      logRunningRings()
      return .done
    }
    let otherAlignment: UInt64 = isPacked ? 4 : 2
    guard addresses.descriptor % 16 == 0, addresses.used % 4 == 0, addresses.available % otherAlignment == 0
    else {
      return .refused("misaligned ring addresses")
    }
    let before = ring.addresses
    ring.addresses = addresses
    // Before there is memory, they cannot be checked: the start will. Nor before they are translated.
    if let map, translation == nil, ring.size > 0, !holds(ring, map) {
      ring.addresses = before
      return .refused("ring addresses that are not in one memory region each")
    }
    return .done
  }

  /// Whether all of a ring's areas lie in the map.
  func holds(_ ring: Vring, _ map: GuestMemoryMap) -> Bool {
    guard let layout = layout(of: ring) else { return false }
    return isPacked ? PackedRing.fits(layout, in: map) : SplitRing.fits(layout, in: map)
  }

  func layout(of ring: Vring) -> RingLayout? {
    guard let addresses = ring.addresses, ring.size > 0 else { return nil }
    return RingLayout(
      size: ring.size, descriptorArea: addresses.descriptor, driverArea: addresses.available,
      deviceArea: addresses.used, base: ring.base, indirect: acknowledged.contains(.indirectDescriptors),
      eventIndex: acknowledged.contains(.eventIndex))
  }

  /// An eventfd, or none: anything else might block us, or never stop being ready.
  private static func isUsable(_ descriptor: borrowing OwnedFD?) -> Bool {
    switch descriptor {
    case .some(let descriptor): EventFD.isEventFD(descriptor)
    case .none: true
    }
  }

  /// Starts the ring, or replaces the kick of a running one. Nil descriptor: the ring is polled.
  func setKick(_ index: Int, _ ring: Vring, _ descriptor: consuming OwnedFD?) -> Handling {
    guard Self.isUsable(descriptor) else { return .refused("a kick that is no eventfd") }
    ring.setKick(descriptor)
    if ring.started {
      if let error = host.setKick(index, ring.kickRaw) { return .refused("kick: \(error)") }
      return .done
    }
    return translation == nil ? start(index, ring) : startTranslated(index, ring)
  }

  /// Has the queue thread take the ring up.
  func start(_ index: Int, _ ring: Vring) -> Handling {
    guard let layout = layout(of: ring), let map else {
      return .refused("ring \(index) started before it was set up")
    }
    var area: InflightArea?
    if let inflight {
      area = inflight.area(index, packed: isPacked)
      if area == nil { return .refused("ring \(index) has no place in the inflight region") }
    }
    let limiter = limiter
    let desk = desk
    let setup = QueueSetup(
      layout: layout, features: acknowledged, map: map, inflight: area, log: queueLog(of: ring),
      enabled: ring.enabled, kick: ring.kickRaw, call: ring.callRaw, error: ring.errorRaw,
      onFault: { fault in
        limiter.warning("ring \(index) is broken: \(fault)")
      },
      onMiss: { desk.post(MissNote(queue: index, misses: $0)) })
    if let error = host.start(index, setup) {
      if let raw = ring.errorRaw { EventFD.signal(raw) }
      return .refused("ring \(index) does not start: \(error)")
    }
    ring.markStarted()
    loadedState = nil
    channel.repeatNews()
    return .done
  }

  func setCall(_ ring: Vring, _ descriptor: consuming OwnedFD?) -> Handling {
    guard Self.isUsable(descriptor) else { return .refused("a call that is no eventfd") }
    ring.setCall(descriptor)
    guard ring.started, let index = rings.firstIndex(where: { $0 === ring }) else { return .done }
    if let error = host.setCall(index, ring.callRaw) { return .refused("call: \(error)") }
    return .done
  }

  func setError(_ ring: Vring, _ descriptor: consuming OwnedFD?) -> Handling {
    guard Self.isUsable(descriptor) else { return .refused("an error line that is no eventfd") }
    ring.setError(descriptor)
    guard ring.started, let index = rings.firstIndex(where: { $0 === ring }) else { return .done }
    if let error = host.setError(index, ring.errorRaw) { return .refused("error line: \(error)") }
    return .done
  }

  func setEnabled(_ ring: Vring, _ value: UInt32) -> Handling {
    guard value <= 1 else { return .refused("enable with \(value), expected 0 or 1") }
    ring.enabled = value == 1
    if ring.started, let index = rings.firstIndex(where: { $0 === ring }) {
      host.setEnabled(index, ring.enabled)
    }
    return .done
  }

  /// Stops the ring, and answers where it is: at once where it does not run, else when its last request is done.
  func getBase(_ index: UInt32) -> Handling {
    guard index < UInt32(rings.count) else { return .refused("ring \(index) of \(rings.count)") }
    stop([Int(index)])
    var answer = PayloadWriter()
    answer.u32(index)
    answer.u32(rings[Int(index)].base)
    return .answer(answer.bytes)
  }

  /// All rings stopped, disabled and forgotten; memory, owner and protocol features stay (VHOST_USER_RESET_DEVICE).
  func resetDevice() -> Handling {
    stopAll()
    for ring in rings { ring.reset() }
    host.device.reset()
    inflight = nil
    loadedState = nil
    return .done
  }

  func stopAll() { stop(Array(rings.indices)) }

  private func stop(_ indices: [Int]) {
    defer { forgetTranslations(of: indices) }
    let running = indices.filter { rings[$0].started }
    guard !running.isEmpty else { return }
    let log = log
    let bases = host.stop(running) { waited in
      if waited.components.seconds % 10 == 5 {
        log.notice("stopping: requests have been under way for \(waited)")
      }
    }
    for (index, base) in zip(running, bases) { rings[index].markStopped(at: base) }
  }
}
