mock_provider "aws" {
  override_during = plan

  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }

  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/made" }
  }

  mock_resource "aws_launch_template" {
    defaults = { id = "lt-0123456789abcdef0", latest_version = 3 }
  }
}

variables {
  region       = "eu-central-1"
  cluster_name = "prod"
  subnet_ids   = ["subnet-1", "subnet-2"]
}

run "pods_of_the_manifests_and_no_others_land_on_the_nodes" {
  command = plan

  assert {
    condition     = aws_eks_node_group.gpu.labels == tomap(yamldecode(file("../../knative/gpu-nodes/nodes.yaml"))[0].value)
    error_message = "The nodes' label is what knative/gpu-nodes selects."
  }

  assert {
    condition = [for taint in aws_eks_node_group.gpu.taint : { key = taint.key, effect = taint.effect }] == [
      for toleration in yamldecode(file("../../knative/gpu-nodes/nodes.yaml"))[1].value :
      { key = toleration.key, effect = { NoSchedule = "NO_SCHEDULE" }[toleration.effect] }
    ]
    error_message = "The nodes' taint is what knative/gpu-nodes tolerates."
  }
}

run "nodes_have_a_driver_room_and_no_role_for_pods" {
  command = plan

  assert {
    condition     = [aws_eks_node_group.gpu.ami_type, aws_eks_node_group.gpu.capacity_type] == ["AL2023_x86_64_NVIDIA", "ON_DEMAND"]
    error_message = "The AMI brings NVIDIA's driver."
  }

  assert {
    condition = [
      for options in aws_launch_template.nodes.metadata_options : [options.http_tokens, options.http_put_response_hop_limit]
    ] == [["required", 1]]
    error_message = "Pods can't reach the instance's credentials."
  }

  assert {
    condition = [
      for mapping in aws_launch_template.nodes.block_device_mappings :
      [mapping.device_name, mapping.ebs[0].volume_type, mapping.ebs[0].volume_size, mapping.ebs[0].throughput, mapping.ebs[0].iops, tobool(mapping.ebs[0].encrypted)]
    ] == [["/dev/xvda", "gp3", 200, 500, 3000, true]]
    error_message = "The volume is encrypted and has room for images and models."
  }

  assert {
    condition = toset([for attachment in values(aws_iam_role_policy_attachment.nodes) : attachment.policy_arn]) == toset([
      "arn:aws:iam::aws:policy/AmazonEKSWorkerNodePolicy",
      "arn:aws:iam::aws:policy/AmazonEKS_CNI_Policy",
      "arn:aws:iam::aws:policy/AmazonEC2ContainerRegistryPullOnly",
    ])
    error_message = "A node may join the cluster and pull images."
  }

  assert {
    condition     = aws_eks_node_group.gpu.launch_template[0].version == tostring(aws_launch_template.nodes.latest_version)
    error_message = "The node group follows the launch template."
  }
}

run "nodes_come_from_zero_and_broken_ones_are_replaced" {
  command = plan

  assert {
    condition = [
      for scaling in aws_eks_node_group.gpu.scaling_config : [scaling.min_size, scaling.desired_size, scaling.max_size]
    ] == [[0, 0, 4]]
    error_message = "Without jobs there is no node."
  }

  assert {
    condition     = aws_eks_node_group.gpu.node_repair_config[0].enabled
    error_message = "A node whose GPU has failed is replaced."
  }

  assert {
    condition     = keys(aws_eks_addon.this) == ["eks-node-monitoring-agent", "eks-pod-identity-agent"]
    error_message = "Roles for pods and the repair of nodes need these add-ons."
  }
}

run "bottlerocket_keeps_images_on_its_second_volume" {
  command = plan

  variables {
    ami_type              = "BOTTLEROCKET_x86_64_NVIDIA"
    volume_throughput_mib = 1000
    addons                = { eks-pod-identity-agent = { version = "v1.3.4-eksbuild.1", configuration = "{\"agent\":{}}" } }
  }

  assert {
    condition = [
      for mapping in aws_launch_template.nodes.block_device_mappings : [mapping.device_name, mapping.ebs[0].iops]
    ] == [["/dev/xvdb", 4000]]
    error_message = "The volume of containers is /dev/xvdb, with as many operations as its throughput needs."
  }

  assert {
    condition     = [for name, addon in aws_eks_addon.this : [name, addon.addon_version, addon.configuration_values]] == [["eks-pod-identity-agent", "v1.3.4-eksbuild.1", "{\"agent\":{}}"]]
    error_message = "Add-ons have the version and the configuration that they are given."
  }
}
