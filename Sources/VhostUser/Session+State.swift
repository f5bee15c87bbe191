// The device's own state, which moves with its guest (vhost-user, "Migrating back-end state"): through a channel of the
// front-end's, while no ring runs. On the control thread.

import DeviceKit
import HostIO
import VirtQueue

extension Session {
  /// How long the sender of a state may take to close its channel after it has asked whether all has come.
  private static var stateTimeout: Duration { .seconds(5) }
  /// An answer without a descriptor: bit 8; an error: bits 0 to 7.
  private static let (accepted, failed): (UInt64, UInt64) = (0x100, 0x101)

  /// {u32 direction: 0 from us, 1 to us; u32 phase: 0, stopped}, and a channel for it. Nothing else is a phase yet.
  func setStateChannel(_ reader: inout PayloadReader, _ channel: consuming OwnedFD?) -> Handling {
    let (direction, phase) = (reader.u32(), reader.u32())
    stateTransfer = nil
    do {
      guard direction <= 1, phase == 0, let channel else {
        throw DeviceError.stateRefused("direction \(direction), phase \(phase)")
      }
      guard !rings.contains(where: { $0.started || $0.awaits }) else {
        throw DeviceError.stateRefused("rings run")
      }
      guard [.pipe, .socket].contains(try FileFacts(of: channel).kind) else {
        throw DeviceError.stateRefused("a channel that is no pipe and no socket")
      }
      if direction == 0 {
        let bytes = StateFormat.bytes(of: host.device.saveState(), device: host.device.identity.id)
        stateTransfer = try StateTransfer(sending: bytes, to: channel)
      } else {
        stateTransfer = StateTransfer(receivingFrom: channel)
      }
      return .answer(PayloadWriter.u64(Self.accepted))
    } catch {
      limiter.warning("no transfer of the device's state: \(error)")
      return .answer(PayloadWriter.u64(Self.failed))
    }
  }

  /// Until a message comes, takes a state that is on its way: its sender may wait for us before it says anything more. Behind
  /// an IOMMU `awaitMessage` does.
  func takeIncomingState() {
    while translation == nil, let raw = stateTransfer?.incoming {
      let ready = Poll.any([(stream.raw, .readable), (stop, .readable), (raw, .readable)], milliseconds: -1)
      if !ready[2].isEmpty { receiveState() }
      if !ready[0].isEmpty || !ready[1].isEmpty { return }
    }
  }

  /// Whether the last transfer worked: 0 for yes. One that comes in has to end now.
  func checkState() -> Handling {
    let deadline = ContinuousClock.now + Self.stateTimeout
    while let raw = stateTransfer?.incoming {
      let ready = Poll.any([(raw, .readable), (stop, .readable)], milliseconds: 100)
      if !ready[0].isEmpty { receiveState() }
      if !ready[1].isEmpty || ContinuousClock.now > deadline { stateTransfer?.giveUp() }
    }
    defer { stateTransfer = nil }
    return .answer(PayloadWriter.u64(stateTransfer?.succeeded == true ? 0 : 1))
  }

  /// Takes what has come; the device takes over what has come whole.
  func receiveState() {
    guard let transfer = stateTransfer, let bytes = transfer.receive() else { return }
    do {
      guard !rings.contains(where: { $0.started || $0.awaits }) else {
        throw DeviceError.stateRefused("rings run")
      }
      let state = try StateFormat.state(in: bytes, device: host.device.identity.id)
      try host.device.loadState(state)
      loadedState = state
      transfer.succeed()
      saveDeviceState()
    } catch {
      limiter.warning("the device's state is refused: \(error)")
    }
  }

  /// A driver's choice of features may undo what came before it, and comes after it in some front-ends.
  func reloadState() {
    guard let loadedState else { return }
    try? host.device.loadState(loadedState)
  }
}
