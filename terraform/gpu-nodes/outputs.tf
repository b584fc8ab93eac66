output "node_group" {
  description = "Name of the node group."
  value       = aws_eks_node_group.gpu.node_group_name
}

output "node_role_arn" {
  description = "Role of the nodes; clusters with aws-auth in place of access entries have to name it there."
  value       = aws_iam_role.nodes.arn
}

output "addons" {
  description = "Versions of the add-ons."
  value       = { for name, addon in aws_eks_addon.this : name => addon.addon_version }
}
