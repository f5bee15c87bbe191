// What a driver asks of a card by its control queue, carried out. On that queue's thread; what it changes is under the
// device's lock.

import DeviceKit

extension NetDevice {
  /// Whether a command was carried out; what was not changes nothing.
  func execute(_ command: ControlCommand) -> Bool {
    let features = state.withLock { $0.features }
    switch command {
    case .setSwitch(let name, let on):
      guard features.contains(name.feature) else { return false }
      changeFilter { $0.set(name, on) }
    case .setTables(let unicast, let multicast):
      guard features.contains(NetFeature.controlReceive) else { return false }
      changeFilter { filter in
        filter.unicast = unicast
        filter.multicast = multicast
      }
    case .setNetwork(let network, let wanted):
      guard features.contains(NetFeature.controlVLAN), network < 4096 else { return false }
      changeFilter { $0.setNetwork(network, wanted: wanted) }
    case .setAddress(let mac):
      guard features.contains(NetFeature.controlMAC), source == nil, !mac.isMulticast else { return false }
      state.withLock { $0.mac = mac }
      changeFilter { $0.address = mac.value }
    case .announced:
      guard features.contains(NetFeature.guestAnnounce) else { return false }
      state.withLock { $0.wantsAnnouncement = false }
    case .setPairs(let count):
      guard features.contains(NetFeature.multiQueue), count >= 1, Int(count) <= pairs else { return false }
      state.withLock { $0.activePairs = Int(count) }
      settleQueues()
    case .setOffloads(let offloads):
      let allowed = features.intersection(NetFeature.changeable)
      guard features.contains(NetFeature.guestOffloads), offloads.isSubset(of: allowed),
        case .tap(let tap) = place
      else { return false }
      state.withLock { $0.offloads = offloads }
      tellOffloads(tap)
    }
    return true
  }

  /// What is answered is in force: receive queues look at each frame whether there is another filter.
  private func changeFilter(_ change: (inout ReceiveFilter) -> Void) {
    state.withLock { state in
      change(&state.filter)
      board.set(state.filter)
    }
  }
}

extension ReceiveFilter.Switch {
  /// The feature that a driver needs to set it.
  fileprivate var feature: FeatureSet {
    switch self {
    case .promiscuous, .allMulticast: NetFeature.controlReceive
    case .allUnicast, .noMulticast, .noUnicast, .noBroadcast: NetFeature.controlReceiveExtra
    }
  }
}
