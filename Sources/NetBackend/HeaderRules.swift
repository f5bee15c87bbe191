// Which headers a driver may put before a frame (virtio 1.3 §5.1.6.2), and which it may not. Decides on a copy, never on
// guest memory. Called for each frame that a guest sends, on its queue's thread.

import DeviceKit

/// What is wrong with a frame or its header.
public enum HeaderFault: UInt8, Sendable, Equatable, CaseIterable {
  /// Fewer bytes than an Ethernet header.
  case shortFrame
  /// More bytes than a frame may have, or than the negotiated MTU allows where it is not to be cut.
  case longFrame
  /// The header is said to be longer than the frame.
  case headerLength
  /// A checksum to be made, which was not negotiated, or outside the frame.
  case checksumNotNegotiated
  case checksumOutside
  /// A kind of segmentation that does not exist or was not negotiated.
  case segmentation
  /// A segmented frame without a checksum to be made, or without a size to cut to.
  case segmentWithoutChecksum
  case segmentSize
}

/// The rules for one session's features.
public struct HeaderRules: Sendable, Equatable {
  private let checksums: Bool
  private let congestion: Bool
  /// A bit for each segmentation type.
  private let types: UInt64
  private let frameLimit: Int

  public init(features: FeatureSet, frameLimit: Int) {
    checksums = features.contains(NetFeature.checksum)
    congestion = features.contains(NetFeature.hostECN)
    self.frameLimit = frameLimit
    var types: UInt64 = 1 << UInt64(NetHeader.Segmentation.none.rawValue)
    let kinds: [(FeatureSet, NetHeader.Segmentation)] = [
      (NetFeature.hostTSO4, .tcp4), (NetFeature.hostTSO6, .tcp6), (NetFeature.hostUFO, .udp),
      (NetFeature.hostUSO, .udpL4),
    ]
    for (feature, kind) in kinds where features.contains(feature) { types |= 1 << UInt64(kind.rawValue) }
    self.types = types
  }

  /// What is wrong with a header before a frame of `frameLength` bytes; nil: nothing.
  public func fault(in header: NetHeader, frameLength: Int) -> HeaderFault? {
    if frameLength < EthernetFrame.headerBytes { return .shortFrame }
    if frameLength > NetTerms.longestFrame { return .longFrame }
    // A hint, but one that a kernel refuses to take past the frame's end.
    if Int(header.headerLength) > frameLength { return .headerLength }
    let partial = header.flags.contains(.needsChecksum)
    if partial {
      if !checksums { return .checksumNotNegotiated }
      if Int(header.checksumStart) + Int(header.checksumOffset) + 2 > frameLength { return .checksumOutside }
    }
    if header.segmentationType == 0 { return frameLength > frameLimit ? .longFrame : nil }
    let type = header.segmentationType & ~NetHeader.congestionBit
    if type >= 64 || types >> UInt64(type) & 1 == 0 { return .segmentation }
    if header.segmentationType & NetHeader.congestionBit != 0 {
      let isTCP = type == NetHeader.Segmentation.tcp4.rawValue || type == NetHeader.Segmentation.tcp6.rawValue
      if !congestion || !isTCP { return .segmentation }
    }
    if !partial { return .segmentWithoutChecksum }
    return header.segmentSize == 0 ? .segmentSize : nil
  }
}
