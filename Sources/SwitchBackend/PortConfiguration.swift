// What an operator decides about one port of a switch. Values, any thread.

import DeviceKit
import NetBackend

/// Which virtual networks a port is in, and how its frames say so (IEEE 802.1Q).
public enum PortNetworks: Sendable, Equatable {
  /// A network of its own with all ports like it, in which tags are part of the frame.
  case transparent
  /// One network; frames have no tag at the port.
  case access(UInt16)
  /// These networks, frames tagged; untagged ones are of the native network, where there is one.
  case trunk(native: UInt16?, allowed: Set<UInt16>)

  /// Numbers that a network may have.
  public static let numbers: ClosedRange<UInt16> = 1...4094
}

/// One port.
public struct PortConfiguration: Sendable, Equatable {
  public var networks = PortNetworks.transparent
  /// Its frames do not reach other isolated ports, nor theirs it.
  public var isIsolated = false
  /// The only address that its frames may come from, and where frames to it go; nil: learned from its frames.
  public var mac: MACAddress?
  /// Frames of it that may go to more than one port: broadcasts, multicasts, and those to addresses nobody has been heard
  /// from. Nil: any number.
  public var floods: Rate?

  public init() {}
}

/// The whole switch.
public struct SwitchConfiguration: Sendable {
  /// After so many seconds without a frame from it, an address is forgotten.
  public var ageing: UInt32 = 300
  public var ports: [PortConfiguration]
  /// The port that leads out of the host's memory, to a tap; it has no address of its own. Nil: none.
  public var uplink: PortConfiguration?

  public init(ports: [PortConfiguration]) { self.ports = ports }

  /// One pair a port.
  static let portQueues = 2
  /// Seats that the switch's queue thread needs, and descriptors that it holds for it.
  public var seats: Int { Self.portQueues * ports.count + files }
  public var files: Int { uplink == nil ? 0 : 1 }
}
