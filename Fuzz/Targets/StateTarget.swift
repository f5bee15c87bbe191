// A device's state as another back-end sends it: the bytes themselves, and states of any fields that came through whole.

import BlockBackend
import DeviceKit
import HostIO
import NetBackend
import VhostUser

enum StateTarget {
  static let target = FuzzTarget(
    name: "state", about: "a device's state: its bytes, and any fields in it", longest: 1024
  ) { input in
    _ = try? StateFormat.state(in: input, device: 1)
    guard let card else { throw Defect("no card to play with") }
    var feed = Feed(input)
    var state = DeviceState()
    while !feed.isEmpty {
      let number = UInt16(feed.below(9))
      _ = state.set(number, bytes: feed.take(feed.pick([1, 2, 7, 8, 512, 0, 13, 3])))
    }
    let bytes = StateFormat.bytes(of: state, device: 1)
    if bytes.count <= StateFormat.limit {
      guard try StateFormat.state(in: bytes, device: 1) == state else {
        throw Defect("a state that came through as another")
      }
    }
    let before = card.saveState()
    do {
      try card.loadState(state)
    } catch {
      guard card.saveState() == before else { throw Defect("a state that was refused has changed the card") }
    }
  }

  private static let card: NetDevice? = {
    var options = NetDevice.Options()
    options.pairs = 4
    let card = NetDevice(place: .loop, options: options)
    card.negotiated(card.features)
    return card
  }()
}
