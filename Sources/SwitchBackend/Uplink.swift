// A switch's uplink as a device that no front-end has: a tap. Control side: the main thread.

import DeviceKit
import HostIO
import NetBackend

/// One place on the switch's queue thread, started with `DeviceHost.startAlone`. Everything the switch can resolve for its
/// guests may come out of the tap undone; everything guests may leave undone goes into it so.
public final class Uplink: VirtioDevice {
  public let identity = DeviceIdentity(
    id: 1, name: "uplink", queueLimit: 1, counters: PortCounter.allCases.map(\.name))
  public let features: FeatureSet = []
  private let hub: Switch
  private let port: Int
  private let tap: Tap

  private static let terms = NetTerms(
    features: [
      .version1, NetFeature.mergeable, NetFeature.checksum, NetFeature.hostTSO4, NetFeature.hostTSO6,
      NetFeature.hostECN,
    ], mtu: 0)
  private static let offload = TapOffload.checksum | TapOffload.tso4 | TapOffload.tso6 | TapOffload.ecn

  /// Nil where the switch has none.
  public init?(of hub: Switch, tap: Tap) {
    guard let port = hub.uplinkPort else { return nil }
    self.hub = hub
    self.port = port
    self.tap = tap
  }

  public var descriptors: [Int32] { tap.descriptors }
  public var sandboxNeeds: SandboxNeeds { Tap.sandboxNeeds }

  public func willRun() throws(DeviceError) {
    do {
      try tap.agree(headerBytes: Self.terms.layout.byteCount, offload: Self.offload)
    } catch {
      throw .startRefused("tap '\(tap.name)': \(error)")
    }
  }

  public func didStop() { tap.forget() }

  public func start(_ queue: consuming QueueStart) throws(DeviceError) {
    let (hub, port, tap, file) = (hub, port, tap, queue.files.first)
    queue.runAlone(
      { UplinkWorker(hub: hub, port: port, tap: TapPort(tap, queue: 0, file: file), terms: Self.terms) },
      reachable: { hub.attach($0, port: port) })
  }

  public func retire() { tap.retire() }
}
