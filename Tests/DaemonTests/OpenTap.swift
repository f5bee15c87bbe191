// Descriptors of a tap as management software hands them over: opened by somebody else. Any thread.

import CLinux
import Foundation
import GuestHarness

/// Queues of a tap in a network namespace of its own.
final class OpenTap: @unchecked Sendable {
  private(set) var descriptors: [Int32] = []

  deinit { descriptors.forEach { close($0) } }

  /// Made on a thread that enters the namespace; the descriptors stay in it. `header`: frames have virtio's before them.
  static func queues(of name: String, _ count: Int, header: Bool = true) throws -> OpenTap {
    let tap = OpenTap()
    let done = DispatchSemaphore(value: 0)
    let thread = Thread {
      defer { done.signal() }
      guard clx_unshare_network() == 0 else { return }
      for _ in 0..<count {
        let raw = clx_open("/dev/net/tun", O_RDWR | O_CLOEXEC, 0)
        let flags = CLX_IFF_TAP | CLX_IFF_NO_PI | (header ? CLX_IFF_VNET_HDR : 0) | CLX_IFF_MULTI_QUEUE
        guard raw >= 0, clx_tap_attach(raw, name, UInt16(flags)) == 0 else { return }
        tap.descriptors.append(raw)
      }
    }
    thread.start()
    done.wait()
    guard tap.descriptors.count == count else { throw HarnessError("cannot open a tap") }
    return tap
  }
}
