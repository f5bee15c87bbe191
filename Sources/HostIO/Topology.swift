// Processors and memory nodes of the host. Asked when threads and rings are set up.

import CLinux
import CNuma
import Glibc

public enum Topology {
  /// The processors that this thread may run on, ascending.
  public static var allowedProcessors: [Int] {
    // SAFETY: the call fills at most the array's count.
    let list = unsafe [UInt16](unsafeUninitializedCapacity: 1024) { buffer, count in
      let found = unsafe clx_allowed_cpus(buffer.baseAddress, buffer.count)
      count = max(0, min(Int(found), 1024))
    }
    return list.map(Int.init)
  }

  /// Parses "0,2-5" into processor numbers, in the order given.
  public static func processors(_ list: String) throws(HostError) -> [Int] {
    var result: [Int] = []
    for part in list.split(separator: ",", omittingEmptySubsequences: false) {
      let ends = part.split(separator: "-", omittingEmptySubsequences: false).map { end in
        end.allSatisfy { $0.isASCII && $0.isNumber } ? Int(end) : nil
      }
      guard (1...2).contains(ends.count), let first = ends[0], let last = ends[ends.count - 1], first <= last,
        last < 1024
      else { throw .badProcessorList(list) }
      result.append(contentsOf: first...last)
    }
    return result
  }

  /// How many memory nodes there are; 1 where the kernel knows of none.
  public static var nodeCount: Int {
    numa_available() < 0 ? 1 : max(1, Int(numa_num_configured_nodes()))
  }

  /// The node that the page at an address lies on; nil where it is not there yet or cannot be told.
  public static func node(of address: UnsafeRawPointer) -> Int? {
    guard nodeCount > 1 else { return 0 }
    var page: UnsafeMutableRawPointer? = unsafe UnsafeMutableRawPointer(mutating: address)
    var status: Int32 = -1
    // SAFETY: asks about one page; nothing is moved when no target nodes are given.
    guard unsafe move_pages(0, 1, &page, nil, &status, 0) == 0, status >= 0 else { return nil }
    return Int(status)
  }

  /// Moves the calling thread, and what it allocates from now on, to a node. A node without processors or memory is left
  /// to the kernel's own choice: false.
  @discardableResult
  public static func runOn(node: Int) -> Bool {
    guard nodeCount > 1 else { return false }
    guard numa_run_on_node(Int32(node)) == 0 else { return false }
    numa_set_preferred(Int32(node))
    return true
  }
}
