// What a network device counts, by queue. Names appear in the statistics.

import DeviceKit
import VirtQueue

enum NetCounter: Int, CaseIterable {
  /// Frames that went through, and their bytes as they are at the tap, without virtio's header.
  case frames, bytes
  /// Chains that cannot hold or cannot be a frame: too short, too long, of the wrong direction, partly outside memory.
  case malformed
  /// Frames with a header that the driver may not send (HeaderFault), and frames that the tap would not take.
  case badHeader, refused
  /// Frames with a source address that is not the guest's.
  case spoofed
  /// Frames of another network than the guest's (`--vlan`), and received frames that the driver asked not to be given.
  case wrongNetwork, filtered
  /// Received frames that were shorter than a frame is, or did not fit where they had to.
  case runts, oversize
  /// Frames that found the interface down or gone, or no room where they went.
  case linkDown, noRoom
  /// Frames of a disabled queue.
  case discarded
  /// Waits for a tap that takes nothing now, and frames kept back until there were buffers for them.
  case waits, parked
  /// Frames that had to wait for their rate limit, and for how long.
  case throttles, throttledNanoseconds
  /// Control commands, and those that were refused.
  case commands, refusedCommands
  /// Frames that a capture could not note.
  case uncaptured

  var name: String { String(describing: self) }
}

extension QueueIO where R: ~Copyable {
  @inline(__always)
  func count(_ counter: NetCounter, _ amount: UInt64 = 1) { count(counter.rawValue, amount) }
}
