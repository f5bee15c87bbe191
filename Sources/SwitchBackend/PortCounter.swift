// What a port counts, by queue: its sender's and its receiver's. Names appear in the statistics.

import DeviceKit
import VirtQueue

enum PortCounter: Int, CaseIterable {
  /// Frames taken from the guest to go to one port, and to go to several; with the bytes of both, and of those delivered.
  case frames, floods, bytes
  /// Frames given to the guest.
  case delivered
  /// Frames for an address behind the same port, or behind one that this one is isolated from; and what is meant for a bridge
  /// itself (IEEE 802.1D table 7-10).
  case filtered
  /// Frames over the port's flood limit.
  case floodsRefused
  /// Chains that are no frame: too short, too long, of the wrong direction, partly outside memory, from a group's address.
  case malformed
  /// Frames with a header that the driver may not send, from another address than the port's, or of a network that the
  /// port is not in.
  case badHeader, spoofed, wrongNetwork
  /// Frames for the guest that found no buffer, or none that they fit into.
  case full, tooSmall
  /// Frames for the guest that could not be cut to what it takes, and those that the uplink's kernel refused.
  case unresolvable
  /// Frames for the uplink that found its interface down or gone.
  case linkDown
  /// Checksums made and frames cut for a guest that does neither itself.
  case checksumsMade, framesCut
  /// Frames of a disabled queue.
  case discarded
  /// Addresses learned, moved here from another port, and not learned for want of room.
  case learned, moved, notLearned

  var name: String { String(describing: self) }
}

extension QueueIO where R: ~Copyable {
  @inline(__always)
  func count(_ counter: PortCounter, _ amount: UInt64 = 1) { count(counter.rawValue, amount) }
}
