// Feature bits, as GET_FEATURES and SET_FEATURES carry them (vhost-user: one u64). Values, any thread.

/// A set of virtio feature bits below 64.
public struct FeatureSet: OptionSet, Sendable, Hashable, CustomStringConvertible {
  public let rawValue: UInt64
  public init(rawValue: UInt64) { self.rawValue = rawValue }
  /// The set of one bit, by its number in the specification; numbers from 64 on give the empty set.
  public init(bit: UInt8) { rawValue = bit < 64 ? 1 << UInt64(bit) : 0 }

  /// VHOST_F_LOG_ALL: not a driver's, but the front-end's wish that writes to guest memory be noted.
  public static let logAll = FeatureSet(bit: 26)

  // Device-independent bits (virtio 1.3 §6).
  public static let indirectDescriptors = FeatureSet(bit: 28)
  public static let eventIndex = FeatureSet(bit: 29)
  public static let version1 = FeatureSet(bit: 32)
  public static let accessPlatform = FeatureSet(bit: 33)
  public static let packedRing = FeatureSet(bit: 34)
  public static let inOrder = FeatureSet(bit: 35)
  public static let ringReset = FeatureSet(bit: 40)

  public var description: String {
    let bits = (0..<64).filter { rawValue >> UInt64($0) & 1 == 1 }.map(String.init)
    return "{" + bits.joined(separator: ",") + "}"
  }
}
