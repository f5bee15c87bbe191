// A front-end's IOMMU (VIRTIO_F_ACCESS_PLATFORM): its mappings come and go by IOTLB_MSG, what is missing is asked for over the
// back-end channel. Rings and buffers are named by I/O virtual addresses then. On the control thread; a mapping that is taken
// away is in no use when its message is answered.

import DeviceKit
import HostIO
import VirtQueue

extension Session {
  /// Whether addresses are to be translated: with a channel to ask over. A driver that has no IOMMU of ours takes the feature
  /// up too, where it is offered (confidential guests); its addresses are the guest's.
  private func translates(_ features: FeatureSet, _ protocolFeatures: ProtocolFeatures) -> Bool {
    features.contains(.accessPlatform) && protocolFeatures.contains(.backendRequests)
  }

  /// Begins or ends translating, as was negotiated. A reason: rings run, and their addresses would change their meaning.
  func negotiateTranslation(_ features: FeatureSet, _ protocolFeatures: ProtocolFeatures) -> String? {
    let wanted = translates(features, protocolFeatures)
    guard wanted != (translation != nil) else { return nil }
    guard !rings.contains(where: { $0.started || $0.awaits }) else {
      return "ACCESS_PLATFORM switched while rings run"
    }
    let next = wanted ? Translation(desk: desk) : nil
    if let map {
      do {
        self.map = try memory.makeMap(generation: map.generation &+ 1, iotlb: next?.iotlb)
      } catch {
        return "\(error)"
      }
    }
    translation = next
    return nil
  }

  // MARK: IOTLB_MSG

  /// {u64 iova, u64 size, u64 user address, u8 permission, u8 type, 6 bytes of padding}; always answered, by 0 or 1.
  func iotlbMessage(_ reader: inout PayloadReader) -> Handling {
    let address = reader.u64()
    let size = reader.u64()
    let user = reader.u64()
    let rights = AccessRights(rawValue: reader.u8())
    let reason: String?
    switch reader.u8() {
    case 2: reason = mapRange(address, size, user, rights)
    case 3: reason = unmapRange(address, size)
    case let type: reason = "type \(type), expected 2 or 3"
    }
    guard let reason else { return .answer(PayloadWriter.u64(0)) }
    limiter.warning("refused: IOTLB message: \(reason)")
    return .answer(PayloadWriter.u64(1))
  }

  private func mapRange(
    _ address: UInt64, _ size: UInt64, _ user: UInt64, _ rights: AccessRights
  ) -> String? {
    guard let iotlb = translation?.iotlb else { return "ACCESS_PLATFORM was not negotiated" }
    guard let range = IOVARange(address, size: size), IOVARange(user, size: size) != nil else {
      return "\(size) bytes at 0x\(String(address, radix: 16))"
    }
    guard !rights.isEmpty, AccessRights([.read, .write]).isSuperset(of: rights) else {
      return "permission \(rights.rawValue), expected 1 to 3"
    }
    var hint = 0
    // SAFETY: only whether there is memory is asked. Where a mapping ends outside it is cut at each look.
    if let map, unsafe map.userView.piece(at: user, upTo: 1, hint: &hint) == nil {
      return "user address 0x\(String(user, radix: 16)) is in no region"
    }
    if iotlb.conflicts(range, user: user, rights: rights) { revoke(range) }
    iotlb.update(range, user: user, rights: rights)
    translation?.mapped(range)
    goOn(with: range)
    return nil
  }

  private func unmapRange(_ address: UInt64, _ size: UInt64) -> String? {
    guard translation != nil else { return "ACCESS_PLATFORM was not negotiated" }
    // To take too much away is never wrong: 2^64 bytes cannot be said in 64 bits, and a range may run past the last address.
    if address == 0, size == 0 {
      revoke(.everything)
    } else {
      guard size > 0 else { return "an empty range" }
      revoke(IOVARange(address, size: size) ?? IOVARange(first: address, last: .max))
    }
    goOn()
    return nil
  }

  /// Takes a range away: when this returns no request reaches into it, and rings that lie in it stand still.
  private func revoke(_ range: IOVARange) {
    translation?.iotlb.remove(range)
    let running = rings.indices.filter { rings[$0].started }
    suspend(running.filter { areas(of: rings[$0]).contains { $0.overlaps(range) } }, from: running, range)
  }

  /// Has rings complete what they have taken, and touch their areas no more.
  private func suspend(_ indices: [Int], from running: [Int], _ range: IOVARange) {
    let log = log
    host.revoke(range, from: running, suspending: Set(indices)) { waited in
      if waited.components.seconds % 10 == 5 {
        log.notice("taking memory away: requests have been under way for \(waited)")
      }
    }
    translation?.suspended.formUnion(indices)
  }

  // MARK: Rings

  private func areas(of ring: Vring) -> [RingArea] { layout(of: ring)?.areas(packed: isPacked) ?? [] }

  /// Starts a ring now, or when its areas are translated.
  func startTranslated(_ index: Int, _ ring: Vring) -> Handling {
    guard layout(of: ring) != nil, map != nil else {
      return .refused("ring \(index) started before it was set up")
    }
    ring.awaits = true
    goOn(with: .everything)
    return .done
  }

  /// Running rings that are not found in another map stand still until they are.
  func suspendMissing(in next: GuestMemoryMap) {
    guard translation != nil else { return }
    let missing = rings.indices.filter { isRunning($0) && !holds(rings[$0], next) }
    if !missing.isEmpty { suspend(missing, from: missing, .everything) }
  }

  /// Started, and touching its areas.
  func isRunning(_ index: Int) -> Bool {
    rings[index].started && translation?.suspended.contains(index) != true
  }

  /// Queues have stopped; the mappings are given up with the last one.
  func forgetTranslations(of indices: [Int]) {
    for index in indices {
      rings[index].awaits = false
      translation?.forget(index)
    }
    if !rings.contains(where: { $0.started || $0.awaits }) { translation?.flushAll() }
  }

  // MARK: Going on

  /// Lets everything go on that has what it waited for. `range`: where there is something new, so that rings which were denied
  /// it before look again.
  func goOn(with range: IOVARange? = nil) {
    guard let waits = translation else { return }
    for index in rings.indices where waits.suspended.contains(index) || rings[index].awaits {
      let wait = waits.areas[index]
      let isNew = range.map { range in areas(of: rings[index]).contains { $0.overlaps(range) } } ?? false
      if wait?.open.isEmpty ?? true, wait?.denied.isEmpty ?? true || isNew { tryRing(index) }
    }
    for (index, wait) in waits.chains where wait.open.isEmpty {
      guard translation?.suspended.contains(index) == false else { continue }
      translation?.chains[index] = nil
      host.resume(index, denied: wait.denied)
    }
    askFrontend()
  }

  /// Starts or resumes a ring whose areas are all translated; else asks for what is missing.
  private func tryRing(_ index: Int) {
    guard let iotlb = translation?.iotlb, let map else { return }
    let ring = rings[index]
    let misses = areas(of: ring).flatMap { $0.misses(in: iotlb, limit: 64) }
    guard misses.isEmpty else {
      let denied = translation?.areas[index]?.denied ?? []
      translation?.areas[index] = MissWait(open: Set(misses).subtracting(denied), denied: denied)
      translation?.ask(misses.filter { !denied.contains($0) })
      return
    }
    translation?.areas[index] = nil
    if ring.awaits {
      ring.awaits = false
      if case .refused(let reason) = start(index, ring) { limiter.warning("refused: \(reason)") }
    } else {
      translation?.suspended.remove(index)
      // A chain that waited asks again, if it has to.
      let wait = translation?.chains.removeValue(forKey: index)
      host.resume(index, on: map, denied: wait?.denied ?? [])
    }
  }

  // MARK: The back-end channel

  private func askFrontend() {
    let needsReply = negotiatedProtocol.contains(.replyAck)
    let channel = channel
    translation?.flush(needsReply: needsReply) { channel.ask($0, needsReply: needsReply) }
  }

  /// Another channel: everything open is asked there.
  func askAgain() {
    translation?.askAgain()
    askFrontend()
  }

  /// Waits for the next message, and serves misses and answers meanwhile. Nothing of it waits for the front-end.
  func awaitMessage() {
    while let waits = translation {
      let channelEvents: Readiness = waits.hasUnsent ? [.readable, .writable] : .readable
      let asksChannel = waits.isOwedAnswers || waits.hasUnsent
      let ready = Poll.any(
        [
          (stream.raw, .readable), (stop, .readable), (desk.wakeDescriptor, .readable),
          (asksChannel ? channel.raw : -1, channelEvents), (stateTransfer?.incoming ?? -1, .readable),
        ], milliseconds: waits.isWaiting && !toldOfWait ? 5000 : -1)
      if ready.allSatisfy(\.isEmpty) {
        toldOfWait = true
        log.notice("queues wait for the front-end to translate their addresses")
      }
      if !ready[2].isEmpty { takeNotes() }
      if !ready[3].isEmpty { takeAnswers() }
      if !ready[4].isEmpty { receiveState() }
      if !ready[0].isEmpty || !ready[1].isEmpty { return }
    }
  }

  private func takeNotes() {
    for note in desk.takeAll() where rings[note.queue].started {
      guard let iotlb = translation?.iotlb else { return }
      let open = note.misses.filter { iotlb.find($0.address, upTo: 1, for: $0.access) == nil }
      translation?.chains[note.queue] = MissWait(open: Set(open))
      translation?.ask(open)
    }
    goOn()
  }

  private func takeAnswers() {
    for value in channel.takeAnswers() { translation?.answered(value) }
    goOn()
  }
}
