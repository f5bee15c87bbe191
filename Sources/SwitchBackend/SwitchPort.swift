// A port of a switch as the device that its front-end sees: virtio-net, one pair of queues. Control side, called by the port's
// control thread.

import DeviceKit
import NetBackend
import Synchronization
import VirtQueue

public final class SwitchPort: VirtioDevice {
  public let identity: DeviceIdentity
  public let features: FeatureSet
  private let hub: Switch
  private let port: Int
  private let mac: MACAddress?

  /// The port of this number, which is below the count of the switch's ports. All ports of a switch are served by one
  /// queue thread.
  public init(_ port: Int, of hub: Switch) {
    self.hub = hub
    self.port = port
    mac = hub.configuration.ports[port].mac
    identity = DeviceIdentity(
      id: 1, name: "port\(port)", queueLimit: SwitchConfiguration.portQueues,
      counters: PortCounter.allCases.map(\.name))
    var features: FeatureSet = [
      NetFeature.mergeable, NetFeature.status,
      NetFeature.checksum, NetFeature.hostTSO4, NetFeature.hostTSO6, NetFeature.hostECN,
      NetFeature.guestChecksum, NetFeature.guestTSO4, NetFeature.guestTSO6, NetFeature.guestECN,
    ]
    if mac != nil { features.insert(NetFeature.mac) }
    self.features = features
  }

  /// As `NetDevice`.
  public var supportsIOMMU: Bool { false }

  public func readConfig(_ out: inout ConfigWriter) {
    for byte in (mac ?? MACAddress(value: 0)).bytes { out.append(byte) }
    out.append(UInt16(1))  // the link is up
    out.append(UInt16(1))  // pairs
    out.append(UInt16(0))  // mtu: not offered
    out.append(UInt32.max)  // speed: unknown
    out.append(UInt8.max)  // duplex: unknown
  }

  public var announces: Bool { true }

  /// After a migration: where the guest is now, for the switch and for who is behind its uplink.
  public func announce(_ address: UInt64) { hub.announce(MACAddress(value: address), from: port) }

  public func start(_ queue: consuming QueueStart) throws(DeviceError) {
    let (hub, port, features) = (hub, port, queue.features)
    let terms = NetTerms(features: features, mtu: 0)
    if queue.index == 0 {
      queue.run(
        { ReceiveWorker(hub: hub, port: port, terms: ReceiveTerms(terms, features: features)) },
        reachable: { hub.attach($0, port: port) })
    } else {
      queue.run { SendWorker(hub: hub, port: port, terms: terms) }
    }
  }
}
