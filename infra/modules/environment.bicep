// The Container Apps environment, in our network; its logs go to the workspace without a shared key.

@description('Region.')
param location string

@description('Tags of every resource.')
param tags object

@description('Log Analytics workspace for diagnostics.')
param workspaceId string

@description('Subnet delegated to Container Apps.')
param subnetId string

@description('Spread over availability zones.')
param zoneRedundant bool

// https://learn.microsoft.com/azure/templates/microsoft.app/2025-07-01/managedenvironments
resource apps 'Microsoft.App/managedEnvironments@2025-07-01' = {
  name: 'cae-${uniqueString(resourceGroup().id)}'
  location: location
  tags: tags
  properties: {
    appLogsConfiguration: {
      destination: 'azure-monitor'
    }
    vnetConfiguration: {
      infrastructureSubnetId: subnetId
      internal: false
    }
    publicNetworkAccess: 'Enabled'
    zoneRedundant: zoneRedundant
    peerTrafficConfiguration: {
      encryption: {
        enabled: true
      }
    }
    workloadProfiles: [
      {
        name: 'Consumption'
        workloadProfileType: 'Consumption'
      }
    ]
  }
}

// https://learn.microsoft.com/azure/templates/microsoft.insights/2021-05-01-preview/diagnosticsettings
resource diagnostics 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  name: 'to-workspace'
  scope: apps
  properties: {
    workspaceId: workspaceId
    logs: [
      {
        categoryGroup: 'allLogs'
        enabled: true
      }
    ]
    metrics: [
      {
        category: 'AllMetrics'
        enabled: true
      }
    ]
  }
}

@description('Name of the environment.')
output name string = apps.name
