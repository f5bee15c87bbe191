// The feature bits of virtio-net (virtio 1.3 §5.1.3), and which of them make what possible. Values, any thread.

import DeviceKit

/// virtio-net's feature bits below 64.
public enum NetFeature {
  public static let checksum = FeatureSet(bit: 0)
  public static let guestChecksum = FeatureSet(bit: 1)
  public static let guestOffloads = FeatureSet(bit: 2)
  public static let mtu = FeatureSet(bit: 3)
  public static let mac = FeatureSet(bit: 5)
  public static let guestTSO4 = FeatureSet(bit: 7)
  public static let guestTSO6 = FeatureSet(bit: 8)
  public static let guestECN = FeatureSet(bit: 9)
  public static let guestUFO = FeatureSet(bit: 10)
  public static let hostTSO4 = FeatureSet(bit: 11)
  public static let hostTSO6 = FeatureSet(bit: 12)
  public static let hostECN = FeatureSet(bit: 13)
  public static let hostUFO = FeatureSet(bit: 14)
  public static let mergeable = FeatureSet(bit: 15)
  public static let status = FeatureSet(bit: 16)
  public static let controlQueue = FeatureSet(bit: 17)
  public static let controlReceive = FeatureSet(bit: 18)
  public static let controlVLAN = FeatureSet(bit: 19)
  public static let controlReceiveExtra = FeatureSet(bit: 20)
  public static let guestAnnounce = FeatureSet(bit: 21)
  public static let multiQueue = FeatureSet(bit: 22)
  public static let controlMAC = FeatureSet(bit: 23)
  public static let guestUSO4 = FeatureSet(bit: 54)
  public static let guestUSO6 = FeatureSet(bit: 55)
  public static let hostUSO = FeatureSet(bit: 56)
  public static let hashReport = FeatureSet(bit: 57)
  public static let speedDuplex = FeatureSet(bit: 63)

  /// What the guest may leave undone in what it sends.
  public static let send: FeatureSet = [checksum, hostTSO4, hostTSO6, hostECN, hostUFO]
  /// What may be left undone in what it receives.
  public static let receive: FeatureSet = [guestChecksum, guestTSO4, guestTSO6, guestECN, guestUFO]
  /// Segmentation of UDP (Linux 6.2).
  public static let udpSegmentation: FeatureSet = [guestUSO4, guestUSO6, hostUSO]
  /// The receive bits that CTRL_GUEST_OFFLOADS may change.
  static let changeable: FeatureSet = [
    guestChecksum, guestTSO4, guestTSO6, guestECN, guestUFO, guestUSO4, guestUSO6,
  ]
}

/// What the driver's choice of features means for frames and their headers.
public struct NetTerms: Sendable, Equatable {
  /// The longest packet there is, with a VLAN tag: what a segmented frame may have.
  public static let longestFrame = 65535 + 18

  public let layout: NetHeaderLayout
  /// A frame may take several receive buffers.
  public let mergeable: Bool
  /// Received frames may lack their checksums.
  public let receivesPartialChecksums: Bool
  /// Received frames may be segments of up to `longestFrame`.
  public let receivesSegments: Bool
  public let rules: HeaderRules
  /// A frame that is not to be cut has at most so many bytes.
  public let frameLimit: Int

  /// `mtu`: what the driver was told, where it listens; 0: nothing.
  public init(features: FeatureSet, mtu: UInt16) {
    mergeable = features.contains(NetFeature.mergeable)
    layout = NetHeaderLayout(
      modern: features.contains(.version1), mergeable: mergeable,
      hashReport: features.contains(NetFeature.hashReport))
    let offload = Self.tapOffload(features)
    receivesPartialChecksums = offload & TapOffload.checksum != 0
    receivesSegments = offload & ~TapOffload.checksum != 0
    let limited = features.contains(NetFeature.mtu) && mtu > 0
    // Ethernet's header, and one VLAN tag.
    frameLimit = limited ? Int(mtu) + 18 : Self.longestFrame
    rules = HeaderRules(features: features, frameLimit: frameLimit)
  }

  /// How many bytes of buffers, header included, should wait for the next frame: what the largest usual one takes.
  func goal(linkMTU: Int) -> Int {
    layout.byteCount + (receivesSegments ? Self.longestFrame : min(frameLimit, max(linkMTU, 1500) + 18))
  }

  /// TUN_F_* for a choice of features: exactly what was negotiated, less what the kernel would refuse because something it
  /// needs is missing (virtio 1.3 §5.1.3.1).
  public static func tapOffload(_ features: FeatureSet) -> UInt32 {
    guard features.contains(NetFeature.guestChecksum) else { return 0 }
    var offload = TapOffload.checksum
    if features.contains(NetFeature.guestTSO4) { offload |= TapOffload.tso4 }
    if features.contains(NetFeature.guestTSO6) { offload |= TapOffload.tso6 }
    if features.contains(NetFeature.guestECN), offload & (TapOffload.tso4 | TapOffload.tso6) != 0 {
      offload |= TapOffload.ecn
    }
    if features.contains(NetFeature.guestUFO) { offload |= TapOffload.ufo }
    // The kernel takes both or none.
    if features.isSuperset(of: [NetFeature.guestUSO4, NetFeature.guestUSO6]) { offload |= TapOffload.uso }
    return offload
  }
}

/// TUN_F_* (linux/if_tun.h): what a tap may leave undone in the frames that it hands out.
package enum TapOffload {
  package static let checksum: UInt32 = 0x01
  package static let tso4: UInt32 = 0x02
  package static let tso6: UInt32 = 0x04
  package static let ecn: UInt32 = 0x08
  package static let ufo: UInt32 = 0x10
  /// USO4 and USO6.
  package static let uso: UInt32 = 0x60
}
