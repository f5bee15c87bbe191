// What of a network card moves with its guest: what the driver has asked for by its control queue, and will not ask for again.
// Called by the control thread, while no queue runs.

import DeviceKit
import VirtQueue

extension NetDevice {
  /// Numbers of the fields of a card's state. They are for good.
  private enum Field {
    /// Offloads that the driver takes, as feature bits: u64.
    static let offloads: UInt16 = 1
    /// The driver's address, its first byte lowest: u64.
    static let address: UInt16 = 2
    /// Pairs of queues that it uses: u16.
    static let pairs: UInt16 = 3
    /// The receive filter: its modes (u8), its two tables (`ReceiveFilter.Table.bytes`), its networks (a bit each, 512 bytes;
    /// missing where frames with any tag are wanted).
    static let modes: UInt16 = 4
    static let unicast: UInt16 = 5
    static let multicast: UInt16 = 6
    static let networks: UInt16 = 7
  }

  public func saveState() -> DeviceState {
    let card = state.withLock { $0 }
    var state = DeviceState()
    state.set(Field.offloads, card.offloads.rawValue)
    state.set(Field.address, card.mac.value)
    state.set(Field.pairs, UInt16(clamping: card.activePairs))
    state.set(Field.modes, card.filter.switches)
    _ = state.set(Field.unicast, bytes: card.filter.unicast.bytes)
    _ = state.set(Field.multicast, bytes: card.filter.multicast.bytes)
    if let networks = card.filter.networks {
      var writer = ConfigWriter()
      for word in networks { writer.append(word) }
      _ = state.set(Field.networks, bytes: writer.bytes)
    }
    return state
  }

  /// A guest that has moved is to tell its network where it is: it is asked to, where it can be. Offloads and filters that it has
  /// not negotiated here are as for a new driver.
  public func loadState(_ moved: DeviceState) throws(DeviceError) {
    let offloads = FeatureSet(rawValue: try moved.get(Field.offloads, as: UInt64.self))
    guard offloads.isSubset(of: NetFeature.changeable) else { throw .stateRefused("offloads \(offloads)") }
    let address = try moved.get(Field.address, as: UInt64.self)
    let mac = MACAddress(value: address)
    guard mac.value == address, !mac.isMulticast, source == nil || mac == source else {
      throw .stateRefused("the address \(mac)")
    }
    let active = Int(try moved.get(Field.pairs, as: UInt16.self))
    guard active >= 1, active <= pairs else { throw .stateRefused("\(active) pairs, on a card of \(pairs)") }
    let features = state.withLock { $0.features }
    let filter = try filter(of: moved, address, features)
    state.withLock { state in
      state.offloads = offloads.intersection(features)
      state.mac = mac
      state.activePairs = active
      state.wantsAnnouncement = true
      state.filter = filter
      board.set(filter)
    }
    settleQueues()
  }

  /// The filter that a state has, as far as these features have one.
  private func filter(
    of moved: DeviceState, _ address: UInt64, _ features: FeatureSet
  ) throws(DeviceError) -> ReceiveFilter {
    var filter = ReceiveFilter(limitsNetworks: features.contains(NetFeature.controlVLAN))
    filter.address = address
    guard let unicast = ReceiveFilter.Table(bytes: moved.fields[Field.unicast] ?? []),
      let multicast = ReceiveFilter.Table(bytes: moved.fields[Field.multicast] ?? [])
    else { throw .stateRefused("a table of addresses") }
    var other = filter
    let networks = moved.fields[Field.networks].map { bytes in
      stride(from: 0, to: bytes.count - 7, by: 8).map { at in
        bytes[at..<(at + 8)].reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
      }
    }
    guard other.take(switches: try moved.get(Field.modes, as: UInt8.self), networks: networks) else {
      throw .stateRefused("modes or networks of a filter")
    }
    guard features.contains(NetFeature.controlReceive) else { return filter }
    other.unicast = unicast
    other.multicast = multicast
    return other
  }
}
